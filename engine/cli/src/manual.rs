//! `weft completions` and `weft man`: made from the same definition as the command line itself.

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args;
use crate::failure::Failure;
use crate::output::Output;

/// Prints completions for a shell, for example `weft completions bash > /etc/bash_completion.d/weft`
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the manual page, of the whole program or of one command: `weft man bench | man -l -`
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The command
    command: Option<String>,
}

pub(crate) fn completions(args: &CompletionsArgs, output: &Output) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    clap_complete::generate(args.shell, &mut args::Args::command(), "weft", &mut bytes);
    output.raw(&bytes);
    Ok(())
}

pub(crate) fn man(args: &ManArgs, output: &Output) -> Result<(), Failure> {
    let mut whole = args::Args::command();
    whole.build();
    let command = match &args.command {
        None => whole,
        Some(name) => {
            let found = whole.find_subcommand(name).cloned();
            let known =
                || whole.get_subcommands().map(|command| command.get_name().to_owned()).collect::<Vec<_>>();
            found
                .ok_or_else(|| {
                    Failure::Usage(format!("there is no command {name:?}; there are {}", known().join(", ")))
                })?
                .name(format!("weft-{name}"))
        }
    };
    let mut bytes = Vec::new();
    Man::new(command)
        .render(&mut bytes)
        .map_err(|error| Failure::Usage(format!("cannot make the manual page: {error}")))?;
    output.raw(&bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        args::Args::command().debug_assert();
    }
}

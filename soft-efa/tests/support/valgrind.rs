//! Programs under Valgrind, and what it says about the cards (and not about the programs that use them).

use soft_efa::Libraries;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whether it is installed.
pub(crate) fn is_there() -> bool {
    Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// A command that runs `program` under Valgrind, which writes what it finds into `folder`.
pub(crate) fn command(program: impl AsRef<OsStr>, folder: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command
        .args(["--quiet", "--leak-check=full", "--show-leak-kinds=definite", "--xml=yes"])
        .arg(format!("--xml-file={}/%p.xml", folder.display()))
        .arg(program.as_ref());
    command
}

/// Fails if it has found anything that the cards had a part in, or has not looked at `programs` programs or more to their end. `tidy`: the programs
/// give everything back, so what is lost at their end was lost by the cards.
pub(crate) fn assert_clean(folder: &Path, programs: usize, tidy: bool) {
    let reports: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "xml"))
        .map(|entry| std::fs::read_to_string(entry.path()).unwrap())
        .filter(|report| report.contains("<state>FINISHED</state>"))
        .collect();
    assert!(reports.len() >= programs, "{} programs have ended under Valgrind", reports.len());
    let libraries = Libraries::build().unwrap();
    let ours = libraries.dir().to_string_lossy().into_owned();
    for report in reports {
        let errors: Vec<&str> = report
            .split("<error>")
            .skip(1)
            .filter(|error| error.contains(&ours))
            .filter(|error| tidy || !error.contains("<kind>Leak_"))
            .collect();
        assert!(errors.is_empty(), "Valgrind:\n{}", errors.join("\n"));
    }
}

//! What people see: tables, messages, progress; and what programs read: JSON.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{Attribute, Cell, ContentArrangement, Table as Drawn, TableComponent, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On terminals, unless `NO_COLOR` is set.
    Auto,
    Always,
    Never,
}

/// The process's streams, and whether colour may go there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    stdout_color: bool,
    stderr_color: bool,
}

/// How grave a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Good,
    Note,
    Slow,
    Broken,
}

impl Output {
    pub(crate) fn new(color: Color) -> Self {
        // https://no-color.org: present and not empty.
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let decide = |terminal: bool| match color {
            Color::Auto => wanted && terminal,
            Color::Always => true,
            Color::Never => false,
        };
        Self {
            stdout_color: decide(io::stdout().is_terminal()),
            stderr_color: decide(io::stderr().is_terminal()),
        }
    }

    pub(crate) fn stderr_color(&self) -> bool {
        self.stderr_color
    }

    /// Prints a line. A reader that has gone away (`weft … | head`) ends nothing.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush());
    }

    /// Prints text as it is.
    pub(crate) fn raw(&self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }

    /// A heading between blocks.
    pub(crate) fn heading(&self, text: &str) {
        self.line(paint(self.stdout_color, "1", text));
    }

    /// A marked line.
    pub(crate) fn marked(&self, mark: Mark, text: &str) {
        let (code, sign) = match mark {
            Mark::Good => ("32", "ok    "),
            Mark::Note => ("36", "note  "),
            Mark::Slow => ("33", "slow  "),
            Mark::Broken => ("31", "broken"),
        };
        self.line(format!("  {}  {text}", paint(self.stdout_color, code, sign)));
    }

    /// Something to know that is not the result, on stderr.
    pub(crate) fn remark(&self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
    }

    /// Something that makes the result worth less, on stderr.
    pub(crate) fn warning(&self, text: impl AsRef<str>) {
        let head = paint(self.stderr_color, "1;33", "warning:");
        let _ = writeln!(io::stderr().lock(), "{head} {}", text.as_ref());
    }

    /// Why the command ends badly, on stderr.
    pub(crate) fn error(&self, failure: &Failure) {
        let head = paint(self.stderr_color, "1;31", "error:");
        let _ = writeln!(io::stderr().lock(), "{head} {failure}");
    }

    /// Prints a table; columns listed in `right` are aligned to the right. As wide as the terminal at the most.
    pub(crate) fn table<H: AsRef<str>>(&self, heads: &[H], rows: &[Vec<String>], right: &[usize]) {
        let mut table = Drawn::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_style(TableComponent::HeaderLines, '─');
        table.set_style(TableComponent::MiddleHeaderIntersections, '─');
        if !io::stdout().is_terminal() {
            // What is piped is searched and compared: one row, one line.
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        let head = |text: &H| {
            let cell = Cell::new(text.as_ref());
            if self.stdout_color { cell.add_attribute(Attribute::Bold) } else { cell }
        };
        table.set_header(heads.iter().map(head));
        if self.stdout_color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
            if let Some(width) = table.width().filter(|_| io::stdout().is_terminal()) {
                table.set_width(width);
            }
        }
        for row in rows {
            table.add_row(row);
        }
        for &column in right {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
        // Cells padded to the column's width leave spaces at the ends of lines.
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        self.line(lines.join("\n"));
    }

    /// Prints a value as JSON.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        self.line(to_json(value)?);
        Ok(())
    }

    /// Writes a value as JSON into a file; `-` is stdout.
    pub(crate) fn json_file(&self, path: &Path, value: &impl Serialize) -> Result<(), Failure> {
        if path == Path::new("-") {
            return self.json(value);
        }
        std::fs::write(path, to_json(value)? + "\n").map_err(Failure::writing(path))
    }

    /// A bar for something that takes `time`; invisible unless stderr is a terminal.
    pub(crate) fn progress(&self, time: Duration) -> ProgressBar {
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(millis), target);
        // The template is a constant that a test has parsed; without it the bar merely looks different.
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar
    }
}

const TEMPLATE: &str = "{prefix:24} {bar:30} {msg}";

fn to_json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|error| Failure::Usage(format!("cannot write JSON: {error}")))
}

fn paint(color: bool, code: &str, text: &str) -> String {
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_one() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn colour_is_only_where_it_is_wanted() {
        assert_eq!(paint(false, "31", "x"), "x");
        assert_eq!(paint(true, "31", "x"), "\x1b[31mx\x1b[0m");
        // Tests do not run on a terminal, or are told to be quiet there.
        assert!(Output::new(Color::Always).stdout_color);
        assert!(!Output::new(Color::Never).stdout_color);
    }
}

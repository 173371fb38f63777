//! A newcomer's walk: the commands under the README's heading "Quick start", run as they stand there.
//!
//! Each fenced block marked `sh` is one shell session, so that a line can leave a server behind for the next one; the session ends, and its
//! server with it, when its last line has been run. `cargo xtask test` itself is left out, as that is who walks.

use anyhow::{Context, Result, ensure};

use super::Tally;
use crate::shell::Cmd;
use crate::workspace::{Workspace, root};

const HEADING: &str = "## Quick start";
const TEST: &str = "README quick start";

/// Longest time for one session in seconds, release builds included; what it started is killed with it.
const LIMIT: &str = "900";

pub(super) fn run(workspace: &Workspace) -> Result<Tally> {
    let readme = std::fs::read_to_string(root().join("README.md")).context("README.md")?;
    let sessions = sessions(&readme);
    ensure!(!sessions.is_empty(), "README.md has no `sh` block under `{HEADING}`");
    let mut tally = Tally::default();
    for session in sessions {
        // The README names cargo's usual folder; this run may have another.
        let target = workspace.target_dir.display().to_string();
        let session = session.replace("target/release", &format!("{target}/release"));
        let script =
            format!("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\nset -x\n{session}");
        // `timeout` is the head of a process group of its own and ends all of it.
        match Cmd::new("timeout")
            .args(["--kill-after=5", LIMIT, "bash", "-c", &script])
            .quiet()
            .dir(root())
            .run()
        {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                eprintln!("{session}{error:#}");
                tally.failed.insert(format!("{TEST}: {}", session.lines().next().unwrap_or_default()));
            }
        }
    }
    Ok(tally)
}

/// The `sh` blocks of the chapter, without comments and without `cargo xtask test`.
fn sessions(readme: &str) -> Vec<String> {
    let mut sessions = Vec::new();
    let mut block: Option<String> = None;
    for line in
        readme.lines().skip_while(|line| *line != HEADING).skip(1).take_while(|line| !line.starts_with("## "))
    {
        match (&mut block, line.trim_end()) {
            (None, "```sh") => block = Some(String::new()),
            (Some(_), "```") => sessions.extend(block.take().filter(|session| !session.is_empty())),
            (Some(session), line) if !line.starts_with("cargo xtask test") && !line.is_empty() => {
                session.push_str(line);
                session.push('\n');
            }
            _ => {}
        }
    }
    sessions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sh_blocks_of_the_chapter_are_the_walk() {
        let readme = "# A\n```sh\nno\n```\n## Quick start\ntext\n```sh\na &\n\nb\n```\n```rust\nno\n```\n```sh\ncargo xtask test   # all\n```\n## Next\n```sh\nno\n```\n";
        assert_eq!(sessions(readme), ["a &\nb\n"]);
        assert!(sessions("# A\n```sh\nno\n```\n").is_empty());
    }

    #[test]
    fn our_readme_has_a_walk() {
        let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
        assert!(!sessions(&readme).is_empty());
    }
}

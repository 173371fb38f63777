//! The program `weft`; everything it does is in the library, where the Python package's console script finds it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft_cli::main_from(std::env::args_os())
}

//! stub
use crate::failure::Failure;
use crate::output::Output;
/// stub
#[derive(Debug, clap::Args)]
pub struct Args {}
pub(crate) fn run(_: &Args, _: &Output) -> Result<(), Failure> {
    Ok(())
}

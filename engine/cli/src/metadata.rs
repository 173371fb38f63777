//! `weft metadata`: an HTTP metadata store, for clusters that run none.

use crate::failure::Failure;
use crate::output::Output;

/// Serves a metadata store over HTTP, in the protocol that Mooncake's nodes speak too
///
/// Everything is in memory; engines publish themselves again when it has been restarted. The protocol has no authentication: keep it
/// on a network of its own.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where it listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: std::net::SocketAddr,
    /// Most entries
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    max_entries: usize,
    /// End after this time
    #[arg(long, value_name = "TIME", value_parser = crate::units::parse_duration)]
    duration: Option<std::time::Duration>,
    /// Print where it is as one line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
#[cfg(feature = "http-server")]
pub(crate) fn run(args: &Args, output: &Output) -> Result<(), Failure> {
    use engine::metadata::http_server::{Options, serve};

    let stop = crate::signals::on_signal();
    let options = Options { max_entries: args.max_entries, ..Options::default() };
    let server = serve(args.listen, options).map_err(|error| Failure::opening(&error))?;
    if args.json {
        output.line(serde_json::json!({ "url": server.url() }).to_string());
    } else {
        output.line(format!("metadata store at {}", server.url()));
        output.line(format!("try: weft serve --name decode-0 --metadata {}", server.url()));
        output.line(format!("     weft bench --target decode-0 --metadata {}", server.url()));
    }
    stop.wait(args.duration);
    let entries = server.entries();
    server.shutdown();
    if !args.json {
        output.remark(format!("stopped; {entries} entries are forgotten"));
    }
    Ok(())
}

/// Runs the command.
#[cfg(not(feature = "http-server"))]
pub(crate) fn run(_: &Args, _: &Output) -> Result<(), Failure> {
    Err(Failure::Unavailable("this program was built without the feature `http-server`".into()))
}

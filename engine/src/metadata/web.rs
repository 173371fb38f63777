//! HTTP requests as the stores make them: blocking, bounded in time and in what they read.

use std::time::Duration;

use ureq::http::{Request, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, AsSendBody};

use super::location::Options;
use crate::error::Error;

/// A client with the options' time limits and certificates.
pub(super) fn agent(options: &Options) -> Result<Agent, Error> {
    let mut tls = TlsConfig::builder();
    if let Some(path) = &options.ca {
        let wrong = |reason: String| {
            Error::Setting(format!("metadata: the certificate authority {}: {reason}", path.display()))
        };
        let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let certificate = Certificate::from_pem(&pem).map_err(|error| wrong(error.to_string()))?;
        tls = tls.root_certs(RootCerts::new_with_certs(&[certificate]));
    }
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .timeout_global(Some(options.timeout))
        // A server that a proxy hides is none that peers share.
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .max_idle_age(Duration::from_secs(15))
        .user_agent(concat!("weft/", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(config.into())
}

/// Sends a request; reads at most `limit` bytes of the answer's body. The error is in words.
pub(super) fn send(
    agent: &Agent,
    request: Request<impl AsSendBody>,
    limit: usize,
) -> Result<(StatusCode, Vec<u8>), String> {
    let mut response = agent.run(request).map_err(explain)?;
    let status = response.status();
    let body = response.body_mut().with_config().limit(limit as u64).read_to_vec();
    match body {
        Ok(body) => Ok((status, body)),
        Err(ureq::Error::BodyExceedsLimit(_)) => Err(format!("its answer is longer than {limit} bytes")),
        Err(error) => Err(explain(error)),
    }
}

/// Says what went wrong and what to look at.
fn explain(error: ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(what) => {
            format!("no answer in time ({what}); is the server running and reachable?")
        }
        ureq::Error::HostNotFound => "its name is not known; check the URL".into(),
        ureq::Error::Io(error) => format!("{error}; is the server running and reachable?"),
        other => other.to_string(),
    }
}

/// The beginning of what a server said, for messages.
pub(super) fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(200)]).escape_debug().to_string()
}

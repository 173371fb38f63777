//! stub
use crate::failure::Failure;
pub(crate) struct Exporter {
    addr: std::net::SocketAddr,
}
impl Exporter {
    pub(crate) fn start(addr: std::net::SocketAddr, _: &engine::Engine) -> Result<Self, Failure> {
        Ok(Self { addr })
    }
    pub(crate) fn url(&self) -> String {
        format!("http://{}/metrics", self.addr)
    }
}

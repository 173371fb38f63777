//! The least that could move the same bytes: sockets, as many as Weft uses, with the system's congestion control and the same
//! footprint, between two processes.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use benchkit::{OtherEnd, Result};

use crate::bare::{self, Lanes};
use crate::{Figures, Load, Op, Side};

/// Says that this process is the target.
const SERVER: &str = "PYTHON_BENCH_SOCKETS";
/// Bytes that are worth a lane of their own, as in Weft.
const STRIPE: usize = 1 << 20;

pub(crate) fn is_server() -> bool {
    std::env::var_os(SERVER).is_some()
}

pub(crate) fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    OtherEnd::say(&listener.local_addr()?.to_string())?;
    std::thread::spawn(move || bare::serve(listener));
    OtherEnd::stay()
}

pub(crate) struct Sockets {
    _server: OtherEnd,
    addr: SocketAddr,
    /// The connections of the load before, which is usually this one's, too.
    lanes: Option<((Op, usize, usize), Lanes)>,
}

impl Sockets {
    pub(crate) fn start() -> Result<Self> {
        let mut server = OtherEnd::start(SERVER, "1")?;
        let addr = server.line()?.parse()?;
        Ok(Self { _server: server, addr, lanes: None })
    }
}

impl Side for Sockets {
    fn run(&mut self, load: &Load) -> Result<Figures> {
        let of = (load.op, load.size, load.batch);
        let bytes = load.size * load.batch;
        let lanes = match self.lanes.take() {
            Some((of_before, lanes)) if of_before == of => lanes,
            // As Weft's default: a lane for each core, up to four.
            _ => {
                let cores = std::thread::available_parallelism()?.get();
                Lanes::connect(self.addr, cores.clamp(1, 4), bytes)?
            }
        };
        let (_, lanes) = self.lanes.insert((of, lanes));
        let (start, time) = (Instant::now(), Duration::from_secs_f64(load.seconds));
        let mut took = Vec::new();
        while took.is_empty() || start.elapsed() < time {
            let began = Instant::now();
            lanes.run(load.op, load.size, load.batch, STRIPE, 0)?;
            took.push(began.elapsed().as_secs_f64());
        }
        let total: f64 = took.iter().sum();
        Ok([(bytes * took.len()) as f64 / total / 1e9, benchkit::stats::median(&took) * 1e6])
    }

    fn rest(&mut self) -> Result<()> {
        Ok(()) // blocked in reads
    }
}

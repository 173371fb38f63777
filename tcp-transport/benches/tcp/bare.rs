//! The baselines: the least that could move the same bytes. A blocking thread for each connection on both sides, one header,
//! one payload and one acknowledgement per request, nothing checked.

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use benchkit::Result;
use crossbeam_channel::{Receiver, Sender};

const HEADER: usize = 24;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
}

impl Op {
    pub(crate) const BOTH: [Self; 2] = [Self::Write, Self::Read];

    pub(crate) fn name(self) -> &'static str {
        if self == Self::Read { "read" } else { "write" }
    }
}

/// Serves every connection on a thread of its own: a buffer of the length that it asks for, and requests into it.
pub(crate) fn serve(listener: TcpListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            // A benchmark that ends just closes its connections.
            let _ = serve_one(stream);
        });
    }
}

fn serve_one(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut word = [0; 8];
    stream.read_exact(&mut word)?;
    let mut memory = vec![1_u8; u64::from_le_bytes(word) as usize];
    let mut header = [0; HEADER];
    loop {
        stream.read_exact(&mut header)?;
        let field = |i: usize| u64::from_le_bytes(header[i * 8..][..8].try_into().unwrap_or_default());
        let range = field(1) as usize..(field(1) + field(2)) as usize;
        if field(0) == 0 {
            write_two(&mut stream, &header, &memory[range])?;
        } else {
            stream.read_exact(&mut memory[range])?;
            stream.write_all(&header)?;
        }
    }
}

fn write_two(stream: &mut TcpStream, a: &[u8], b: &[u8]) -> std::io::Result<()> {
    let mut parts = [IoSlice::new(a), IoSlice::new(b)];
    let mut rest = &mut parts[..];
    while !rest.is_empty() {
        let n = stream.write_vectored(rest)?;
        IoSlice::advance_slices(&mut rest, n);
    }
    Ok(())
}

/// One connection and its half of the memory.
pub(crate) struct Lane {
    stream: TcpStream,
    memory: Vec<u8>,
}

impl Lane {
    pub(crate) fn connect(addr: SocketAddr, footprint: usize) -> Result<Self> {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.write_all(&(footprint as u64).to_le_bytes())?;
        Ok(Self { stream, memory: vec![2; footprint] })
    }

    /// `count` requests of `size` bytes, all of them in flight at once, from this slot of the memory on.
    pub(crate) fn run(&mut self, op: Op, size: usize, count: usize, first: usize) -> Result<()> {
        let slots = (self.memory.len() / size).max(1);
        let header = |i: usize| {
            let mut out = [0; HEADER];
            out[..8].copy_from_slice(&u64::from(op == Op::Write).to_le_bytes());
            out[8..16].copy_from_slice(&((i % slots * size) as u64).to_le_bytes());
            out[16..].copy_from_slice(&(size as u64).to_le_bytes());
            out
        };
        let mut answer = [0; HEADER];
        match op {
            Op::Write => {
                for i in first..first + count {
                    write_two(&mut self.stream, &header(i), &self.memory[i % slots * size..][..size])?;
                }
                for _ in 0..count {
                    self.stream.read_exact(&mut answer)?;
                }
            }
            Op::Read => {
                let headers: Vec<u8> = (first..first + count).flat_map(header).collect();
                self.stream.write_all(&headers)?;
                for i in first..first + count {
                    self.stream.read_exact(&mut answer)?;
                    self.stream.read_exact(&mut self.memory[i % slots * size..][..size])?;
                }
            }
        }
        Ok(())
    }
}

/// A thread with a connection: it takes (what, size, count, first slot) and says whether that went well.
type Helper = (Sender<(Op, usize, usize, usize)>, Receiver<bool>);

/// Several connections, the first driven by the caller and each other one by its own thread.
pub(crate) struct Lanes {
    first: Lane,
    others: Vec<Helper>,
}

impl Lanes {
    pub(crate) fn connect(addr: SocketAddr, lanes: usize, footprint: usize) -> Result<Self> {
        let share = footprint.div_ceil(lanes);
        let first = Lane::connect(addr, footprint)?;
        let mut others = Vec::new();
        for _ in 1..lanes {
            let mut lane = Lane::connect(addr, share.max(1))?;
            let (ask, jobs) = crossbeam_channel::bounded::<(Op, usize, usize, usize)>(1);
            let (done, answers) = crossbeam_channel::bounded(1);
            thread::spawn(move || {
                while let Ok((op, size, count, first)) = jobs.recv() {
                    let ok = lane.run(op, size, count, first).is_ok();
                    if done.send(ok).is_err() {
                        break;
                    }
                }
            });
            others.push((ask, answers));
        }
        Ok(Self { first, others })
    }

    /// Spread like ours: a connection of its own for every `stripe` bytes.
    pub(crate) fn run(
        &mut self,
        op: Op,
        size: usize,
        count: usize,
        stripe: usize,
        first: usize,
    ) -> Result<()> {
        let first = first / (self.others.len() + 1);
        let lanes = (size * count / stripe).clamp(1, self.others.len() + 1);
        let (size, counts) = if count >= lanes {
            (size, (0..lanes).map(|l| count / lanes + usize::from(l < count % lanes)).collect::<Vec<_>>())
        } else {
            // Few large requests: each is cut into as many parts as there are lanes.
            (size / lanes, vec![count; lanes])
        };
        for ((ask, _), &count) in self.others.iter().zip(&counts[1..]) {
            ask.send((op, size, count, first))?;
        }
        self.first.run(op, size, counts[0], first)?;
        for ((_, answers), _) in self.others.iter().zip(&counts[1..]) {
            if !answers.recv()? {
                return Err("a connection of the bare loop failed".into());
            }
        }
        Ok(())
    }
}

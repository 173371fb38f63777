//! The first bytes of a connection: preface, authentication, introductions. Pure: bytes in, bytes out, and at the end what
//! both sides know about each other.
//!
//! Without a secret one round trip, with a secret two. The pattern is Noise `NNpsk0`: the cluster has one shared secret and
//! no identities of its own, so there is nothing for static keys to prove, and with the secret mixed in before the first
//! message a stranger is turned away by its first message. The dialling side's introduction is encrypted with the session's
//! keys: only then does the accepting side know that it is not talking to a recording.

use snow::resolvers::{CryptoResolver, DefaultResolver};

use crate::cipher::Cipher;
use crate::settings::Encryption;
use crate::wire::{MAGIC, Malformed, Reader, VERSION};

const NOISE: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Longest message of the handshake.
const MAX_MESSAGE: usize = 1024;
/// Shortest secret: 128 bits, because a recorded first message lets an attacker try guesses at leisure.
pub(crate) const MIN_SECRET: usize = 16;
/// Length of the preface: magic, version, mode, seven zeroes.
pub(crate) const PREFACE_LEN: usize = 16;

const PROCEED: u8 = 0;
const REJECT: u8 = 1;

/// The key that both sides derive from the cluster's secret.
#[derive(Clone)]
pub(crate) struct Psk([u8; 32]);

impl Psk {
    /// HKDF with BLAKE2s, as the Noise library provides it.
    pub(crate) fn derive(secret: &[u8]) -> Option<Self> {
        let mut hash = DefaultResolver.resolve_hash(&snow::params::HashChoice::Blake2s)?;
        let mut key = [0; 32];
        let mut salt = [0; 32];
        let label = b"weft tcp-transport psk 1";
        salt[..label.len()].copy_from_slice(label);
        hash.hkdf(&salt, secret, 1, &mut key, &mut [], &mut []);
        Some(Self(key))
    }
}

/// What a side says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Introduction {
    /// Identity of the transport, random for each life of it.
    pub(crate) session: u128,
    /// The dialling side's number for this lane, never used twice in a session. Zero from the accepting side.
    pub(crate) lane: u64,
    /// Whether this side wants everything encrypted.
    pub(crate) encrypt: bool,
    /// Whether this side would use the same-host path.
    pub(crate) host: bool,
    /// Longest notification or call that it accepts.
    pub(crate) message_limit: u64,
    /// Most requests that may be in flight on this lane.
    pub(crate) lane_requests: u32,
    /// Where it runs: process, number of its process namespace, the kernel's boot identity.
    pub(crate) pid: u32,
    pub(crate) pid_namespace: u64,
    pub(crate) boot_id: [u8; 16],
    /// Accepting side: what the dialling side must show in its own memory to prove that it is the process it says.
    pub(crate) challenge: [u8; 32],
}

impl Introduction {
    pub(crate) const LEN: usize = 104;

    pub(crate) fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut v = Vec::with_capacity(Self::LEN);
        v.extend_from_slice(&self.session.to_le_bytes());
        v.extend_from_slice(&self.lane.to_le_bytes());
        v.extend_from_slice(&[u8::from(self.encrypt), u8::from(self.host), 0, 0, 0, 0, 0, 0]);
        v.extend_from_slice(&self.message_limit.to_le_bytes());
        v.extend_from_slice(&self.lane_requests.to_le_bytes());
        v.extend_from_slice(&self.pid.to_le_bytes());
        v.extend_from_slice(&self.pid_namespace.to_le_bytes());
        v.extend_from_slice(&self.boot_id);
        v.extend_from_slice(&self.challenge);
        let mut out = [0; Self::LEN];
        out.copy_from_slice(&v);
        out
    }

    /// Later versions may append fields, so longer is fine.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader(bytes);
        let session = u128::from_le_bytes(r.array()?);
        let lane = r.u64()?;
        let flag = |b: u8| match b {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a flag of the introduction is neither 0 nor 1")),
        };
        let (encrypt, host) = (flag(r.u8()?)?, flag(r.u8()?)?);
        r.bytes(6)?;
        Ok(Self {
            session,
            lane,
            encrypt,
            host,
            message_limit: r.u64()?,
            lane_requests: r.u32()?,
            pid: r.u32()?,
            pid_namespace: r.u64()?,
            boot_id: r.array()?,
            challenge: r.array()?,
        })
    }
}

/// Why a handshake ended without a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The other side broke the protocol.
    Malformed(&'static str),
    /// The other side does not know the secret, or wants other encryption.
    Authentication(String),
    /// The accepting side said no, in its words.
    Rejected(String),
}

/// What both sides have agreed on.
pub(crate) struct Agreed {
    pub(crate) theirs: Introduction,
    /// Set when everything that follows is encrypted.
    pub(crate) cipher: Option<Cipher>,
}

enum Stage {
    /// Accepting: the preface has not come yet.
    Preface,
    /// Noise message of the other side has not come yet.
    Noise(Box<snow::HandshakeState>),
    /// The other side's introduction has not come yet.
    Introduction(Option<Box<snow::TransportState>>),
    Over,
}

/// One side of a handshake.
pub(crate) struct Handshake {
    dialling: bool,
    ours: Introduction,
    psk: Option<Psk>,
    stage: Stage,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

impl Handshake {
    /// The side that dialled; its first bytes are in [`outgoing`](Self::outgoing) at once.
    pub(crate) fn dial(ours: Introduction, psk: Option<Psk>) -> Result<Self, Failure> {
        let preface = preface(psk.is_some());
        let mut this = Self {
            dialling: true,
            ours,
            psk,
            stage: Stage::Over,
            inbox: Vec::new(),
            outbox: preface.to_vec(),
        };
        if let Some(psk) = &this.psk {
            let mut noise = noise(true, psk, &preface)?;
            let mut message = [0; MAX_MESSAGE];
            let n = noise.write_message(&[], &mut message).map_err(crypto)?;
            this.put(None, &message[..n]);
            this.stage = Stage::Noise(Box::new(noise));
        } else {
            let hello = this.ours.to_bytes();
            this.put(None, &hello);
            this.stage = Stage::Introduction(None);
        }
        Ok(this)
    }

    /// The side that accepted.
    pub(crate) fn accept(ours: Introduction, psk: Option<Psk>) -> Self {
        Self { dialling: false, ours, psk, stage: Stage::Preface, inbox: Vec::new(), outbox: Vec::new() }
    }

    /// Bytes to send now.
    pub(crate) fn outgoing(&self) -> &[u8] {
        &self.outbox
    }

    /// So many of them have been sent.
    pub(crate) fn sent(&mut self, n: usize) {
        self.outbox.drain(..n.min(self.outbox.len()));
    }

    /// How many more bytes to receive at most, so that nothing behind the handshake is taken.
    pub(crate) fn wants(&self) -> usize {
        let need = match self.stage {
            Stage::Preface => PREFACE_LEN,
            _ => match self.inbox.first_chunk::<2>() {
                Some(len) => 2 + usize::from(u16::from_le_bytes(*len)),
                None => 2,
            },
        };
        need.saturating_sub(self.inbox.len())
    }

    /// Takes bytes, at most as many as [`wants`](Self::wants) said; returns what was agreed on when they were the last.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Option<Agreed>, Failure> {
        self.inbox.extend_from_slice(bytes);
        loop {
            if let Stage::Preface = self.stage {
                let Some(&preface) = self.inbox.first_chunk::<PREFACE_LEN>() else { return Ok(None) };
                self.inbox.drain(..PREFACE_LEN);
                self.preface(&preface)?;
                continue;
            }
            let Some(len) = self.inbox.first_chunk::<2>() else { return Ok(None) };
            let len = usize::from(u16::from_le_bytes(*len));
            if len == 0 || len > MAX_MESSAGE {
                return Err(Failure::Malformed("length of a handshake message"));
            }
            if self.inbox.len() < 2 + len {
                return Ok(None);
            }
            let mut message: Vec<u8> = self.inbox.drain(..2 + len).skip(2).collect();
            if self.dialling {
                match message.remove(0) {
                    PROCEED => {}
                    REJECT => return Err(Failure::Rejected(printable(&message))),
                    _ => return Err(Failure::Malformed("tag of a handshake message")),
                }
            }
            if let Some(agreed) = self.message(&message)? {
                return Ok(Some(agreed));
            }
        }
    }

    fn preface(&mut self, preface: &[u8; PREFACE_LEN]) -> Result<(), Failure> {
        if preface[..7] != MAGIC {
            return Err(Failure::Malformed("not this protocol"));
        }
        if preface[7] != VERSION {
            return self.reject(format!("this side speaks version {VERSION}, not {}", preface[7]));
        }
        if preface[9..] != [0; 7] || preface[8] > 1 {
            return Err(Failure::Malformed("reserved bytes of the preface"));
        }
        match (&self.psk, preface[8]) {
            (Some(psk), 1) => self.stage = Stage::Noise(Box::new(noise(false, psk, preface)?)),
            (None, 0) => self.stage = Stage::Introduction(None),
            (Some(_), _) => return self.reject("a secret is required here".into()),
            (None, _) => return self.reject("no secret is configured here".into()),
        }
        Ok(())
    }

    fn message(&mut self, message: &[u8]) -> Result<Option<Agreed>, Failure> {
        let mut plain = [0; MAX_MESSAGE];
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Noise(mut noise) => {
                if noise.read_message(message, &mut plain).is_err() {
                    return match self.dialling {
                        true => Err(Failure::Authentication("the peer's secret differs".into())),
                        false => self.reject("wrong secret".into()),
                    };
                }
                if self.dialling {
                    let mut transport = noise.into_transport_mode().map_err(crypto)?;
                    let n = transport.write_message(&self.ours.to_bytes(), &mut plain).map_err(crypto)?;
                    self.put(None, &plain[..n]);
                    self.stage = Stage::Introduction(Some(Box::new(transport)));
                } else {
                    let n = noise.write_message(&[], &mut plain).map_err(crypto)?;
                    self.put(Some(PROCEED), &plain[..n]);
                    let transport = noise.into_transport_mode().map_err(crypto)?;
                    self.stage = Stage::Introduction(Some(Box::new(transport)));
                }
                Ok(None)
            }
            Stage::Introduction(mut transport) => {
                let bytes = match &mut transport {
                    None => message,
                    Some(t) => {
                        let n = t.read_message(message, &mut plain).map_err(|_| {
                            Failure::Authentication("the peer could not prove the secret".into())
                        })?;
                        &plain[..n]
                    }
                };
                let theirs = Introduction::from_bytes(bytes).map_err(|m| Failure::Malformed(m.0))?;
                if theirs.encrypt != self.ours.encrypt {
                    let text = "one side wants encryption and the other does not";
                    return match self.dialling {
                        true => Err(Failure::Authentication(text.into())),
                        false => self.reject(text.into()),
                    };
                }
                if !self.dialling {
                    let ours = self.ours.to_bytes();
                    match &mut transport {
                        None => self.put(Some(PROCEED), &ours),
                        Some(t) => {
                            let n = t.write_message(&ours, &mut plain).map_err(crypto)?;
                            self.put(Some(PROCEED), &plain[..n]);
                        }
                    }
                }
                let cipher = if self.ours.encrypt {
                    let t = transport.ok_or(Failure::Malformed("encryption without a secret"))?;
                    Some(Cipher::new(*t))
                } else {
                    None
                };
                Ok(Some(Agreed { theirs, cipher }))
            }
            Stage::Preface | Stage::Over => {
                Err(Failure::Malformed("a message after the end of the handshake"))
            }
        }
    }

    /// Accepting side: says no; the text is still in [`outgoing`](Self::outgoing).
    fn reject<T>(&mut self, why: String) -> Result<T, Failure> {
        self.put(Some(REJECT), why.as_bytes());
        Err(Failure::Authentication(why))
    }

    fn put(&mut self, tag: Option<u8>, body: &[u8]) {
        let len = body.len() + usize::from(tag.is_some());
        self.outbox.extend_from_slice(&(len as u16).to_le_bytes());
        self.outbox.extend(tag);
        self.outbox.extend_from_slice(body);
    }
}

pub(crate) fn preface(secret: bool) -> [u8; PREFACE_LEN] {
    let mut out = [0; PREFACE_LEN];
    out[..7].copy_from_slice(&MAGIC);
    out[7] = VERSION;
    out[8] = u8::from(secret);
    out
}

fn noise(dialling: bool, psk: &Psk, prologue: &[u8]) -> Result<snow::HandshakeState, Failure> {
    let params = NOISE.parse().map_err(crypto)?;
    let builder =
        snow::Builder::new(params).psk(0, &psk.0).and_then(|b| b.prologue(prologue)).map_err(crypto)?;
    if dialling { builder.build_initiator() } else { builder.build_responder() }.map_err(crypto)
}

fn crypto(e: snow::Error) -> Failure {
    Failure::Authentication(format!("Noise: {e}"))
}

/// A peer's words, fit for a log.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(300).collect();
    text
}

impl Encryption {
    pub(crate) fn is_full(self) -> bool {
        self == Self::Full
    }
}

//! How operations end that do not end well.

use std::time::{Duration, Instant};

use fabric_safe::{DeregisterError, ErrorKind, PostError, RemoteRegion};

use crate::side::Side;
use crate::support::line::PATIENCE;
use crate::support::pattern;

/// How long an operation with a bad key is waited for. What has not ended by then never does, as far as anyone has seen.
const LONG_ENOUGH: Duration = Duration::from_secs(1);

impl Side {
    /// Receives that nobody sends to end when the endpoint is closed, and give their memory back.
    pub(crate) fn closing(&mut self) {
        let region = self.register(vec![0; 4096]);
        let tokens: Vec<u64> = (0..3).map(|_| self.token()).collect();
        for token in &tokens {
            self.node.post(|e| e.receive(None, region.as_slice(), *token));
        }
        self.together();
        let Err(DeregisterError::InUse(region)) = region.into_memory() else {
            panic!("memory was given back under a receive");
        };
        assert_eq!(self.node.endpoint.receive_in_flight(), tokens.len());
        self.node.endpoint.close().unwrap();
        self.node.endpoint.close().unwrap();
        assert!(matches!(self.node.endpoint.receive(None, region.as_slice(), 0), Err(PostError::Closed)));
        for token in tokens {
            let error = self.node.end(token).result.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Aborted | ErrorKind::Cancelled), "{error}");
            assert!(error.quiesced());
        }
        assert_eq!(region.into_memory().unwrap(), vec![0; 4096]);
        self.tell(b"closed");
        assert_eq!(self.line.hear(|| {}), b"closed");
    }

    /// Writes to and reads from memory with a key that nobody gave out.
    pub(crate) fn bad_key(&mut self, provider: &str) {
        const LEN: usize = 4096;
        if self.target {
            let region = self.register(vec![0xee; LEN]);
            self.tell(&region.remote().to_bytes());
            assert_eq!(self.hear(), b"tried");
            assert_eq!(region.into_memory().unwrap(), vec![0xee; LEN], "a bad key let somebody in");
            self.node.endpoint.close().unwrap();
            return self.tell(b"unharmed");
        }
        let region = self.register(pattern(4, LEN));
        let good = self.remote();
        let bad = RemoteRegion { key: good.key ^ 0x5a, ..good };
        let peer = self.peer.clone();
        let token = self.token();
        self.node.post(|e| e.write(&peer, region.as_slice(), bad.at(0), token));
        let start = Instant::now();
        while !self.node.ended.contains_key(&token) && start.elapsed() < LONG_ENOUGH {
            self.node.poll();
            std::thread::yield_now();
        }
        let by_itself = self.node.ended.contains_key(&token);
        let second = self.token();
        let afterwards = self.node.endpoint.write(&peer, region.as_slice(), bad.at(0), second);
        let still_posts = match &afterwards {
            Ok(_) => true,
            Err(error) => {
                assert!(error.is_again(), "{error}");
                false
            }
        };
        self.node.endpoint.close().unwrap();
        let result = self.node.end(token).result;
        let kind = result.as_ref().map_err(|error| error.kind()).err();
        eprintln!(
            "  {provider}: a bad key: ended by itself {by_itself}, {kind:?}; posts afterwards: {still_posts}"
        );
        if still_posts {
            self.node.end(second);
        }
        // As the table in the crate's documentation has it.
        let info = self.node.endpoint.info();
        let expected = match provider {
            "tcp" | "net" | "tcp;ofi_rxm" => Some(ErrorKind::Cancelled),
            "shm" if info.provider_version().0 >= 200 => None,
            "shm" | "udp;ofi_rxd" => Some(ErrorKind::Aborted),
            _ => Some(ErrorKind::Provider),
        };
        assert_eq!(kind, expected);
        assert!(!still_posts || !matches!(provider, "tcp" | "net"));
        assert_eq!(by_itself, kind != Some(ErrorKind::Aborted));
        drop(region);
        self.tell(b"tried");
        assert_eq!(self.line.hear(|| {}), b"unharmed");
    }

    /// One side posts as much as goes in and closes its endpoint at once; the other one polls on.
    pub(crate) fn parting(&mut self) {
        const LEN: usize = 1 << 16;
        if self.target {
            let region = self.register(vec![0; LEN]);
            self.tell(&region.remote().to_bytes());
            assert_eq!(self.hear(), b"closed");
            // Whatever arrived is a beginning or nothing or all of it, of each write; never anything else.
            let (bytes, sent) = (region.into_memory().unwrap(), pattern(3, LEN));
            assert!(bytes.iter().zip(&sent).all(|(came, sent)| *came == 0 || came == sent));
            self.node.poll();
            self.node.endpoint.close().unwrap();
            return self.tell(b"still here");
        }
        let region = self.register(pattern(3, LEN));
        let remote = self.remote();
        let peer = self.peer.clone();
        // The first one makes the connection.
        let first = self.token();
        self.node.post(|e| e.write(&peer, region.as_slice(), remote.at(0), first));
        self.node.good_end(first);
        let mut tokens = Vec::new();
        let start = Instant::now();
        while tokens.len() < 500 {
            let token = self.token();
            match self.node.endpoint.write(&peer, region.as_slice(), remote.at(0), token) {
                Ok(_) => tokens.push(token),
                Err(PostError::Again) if tokens.is_empty() && start.elapsed() < PATIENCE => {
                    self.node.poll();
                }
                Err(PostError::Again) => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.node.endpoint.close().unwrap();
        let mut at_rest = true;
        for token in tokens {
            at_rest &= self.node.end(token).result.err().is_none_or(|error| error.quiesced());
        }
        // The other side may still be reading with shm, and with no other provider.
        assert!(at_rest || self.node.endpoint.info().provider_name() == "shm");
        match region.into_memory() {
            // What is done to it now must not be seen by the other side.
            Ok(mut bytes) => bytes.fill(0x77),
            Err(DeregisterError::InUse(_)) if !at_rest => {}
            Err(error) => panic!("{error}"),
        }
        self.tell(b"closed");
        assert_eq!(self.line.hear(|| {}), b"still here");
    }
}

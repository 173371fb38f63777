//! What engines say to each other about themselves: the control messages and their encoding.
//!
//! They travel as opaque calls of tcp-transport, on its port and under its authentication. A message is one version byte and
//! then the value in postcard's format; the transport bounds its length before a byte of it is kept, and decoding never
//! allocates more than a message of that length can hold.

use serde::{Deserialize, Serialize};
use tcp_transport::RegionDescriptor;

/// First byte of every message. Raised when the meaning of one changes.
const VERSION: u8 = 1;

/// Most buffers that one segment may have; more is a peer that lies.
pub(crate) const MAX_BUFFERS: usize = 1 << 20;

/// Longest name of an engine in bytes; a host name has at most 253.
pub(crate) const MAX_NAME: usize = 300;

/// A question to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Who are you, what have you registered? Carries the same about the one who asks, so that one round trip tells both
    /// sides everything.
    Describe(Card),
    /// Are you alive?
    Probe,
}

/// The answer to an [`Ask`] of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Describe {
        card: Card,
        /// What the asker puts into its immediates so that they can be told from other peers'. None if too many peers have one.
        number: Option<u16>,
    },
    Probe,
}

/// Everything that a peer has to know about an engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Card {
    /// Name by which the engine can be opened; empty if it does not listen.
    pub(crate) name: String,
    /// Random, new in each life of an engine.
    pub(crate) epoch: u128,
    pub(crate) buffers: Vec<BufferCard>,
    /// efa-transport's descriptor, where the engine has a libfabric path.
    pub(crate) fabric: Option<Vec<u8>>,
    /// Why it has none, for the other side's log.
    pub(crate) no_fabric: String,
}

/// One registered buffer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BufferCard {
    pub(crate) label: String,
    /// [`RegionDescriptor::to_bytes`].
    pub(crate) tcp: Vec<u8>,
    /// Whether the engine's libfabric descriptor has it, too.
    pub(crate) on_fabric: bool,
}

impl BufferCard {
    pub(crate) fn new(label: &str, descriptor: &RegionDescriptor, on_fabric: bool) -> Self {
        Self { label: label.to_owned(), tcp: descriptor.to_bytes().to_vec(), on_fabric }
    }
}

/// A notification with its sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) from: String,
    pub(crate) payload: Vec<u8>,
}

/// Encodes any message. Cannot fail: the values hold nothing that postcard refuses.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION]).unwrap_or_default()
}

/// Decodes a message; the error says what is wrong with it.
pub(crate) fn decode<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, String> {
    let (&version, body) = bytes.split_first().ok_or("an empty message")?;
    if version != VERSION {
        return Err(format!("control protocol version {version}, not {VERSION}"));
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(format!("{} bytes too many after a message", rest.len())),
        Err(error) => Err(format!("a malformed message ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn card() -> impl Strategy<Value = Card> {
        let buffer = (".{0,8}", prop::collection::vec(any::<u8>(), 0..50), any::<bool>())
            .prop_map(|(label, tcp, on_fabric)| BufferCard { label, tcp, on_fabric });
        (
            ".{0,20}",
            any::<u128>(),
            prop::collection::vec(buffer, 0..5),
            prop::option::of(prop::collection::vec(any::<u8>(), 0..50)),
            ".{0,8}",
        )
            .prop_map(|(name, epoch, buffers, fabric, no_fabric)| Card {
                name,
                epoch,
                buffers,
                fabric,
                no_fabric,
            })
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(card in card()) {
            let ask = Ask::Describe(card);
            prop_assert_eq!(decode::<Ask>(&encode(&ask)), Ok(ask));
        }

        /// Cut short, lengthened or changed anywhere, a message is refused or means something else; it never panics.
        #[test]
        fn damaged_messages_never_panic(card in card(), cut: prop::sample::Index, flip: prop::sample::Index, to: u8) {
            let whole = encode(&Ask::Describe(card));
            prop_assert!(decode::<Ask>(&whole[..cut.index(whole.len())]).is_err());
            let mut longer = whole.clone();
            longer.push(0);
            prop_assert!(decode::<Ask>(&longer).is_err());
            let mut changed = whole;
            let at = flip.index(changed.len());
            changed[at] = to;
            let _ = decode::<Ask>(&changed);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Ask>(&bytes);
            let _ = decode::<Answer>(&bytes);
            let _ = decode::<Note>(&bytes);
        }
    }

    /// A length of 2^60 in front of nothing must be refused by what is there, not believed.
    #[test]
    fn announced_lengths_are_not_believed() {
        let huge = [VERSION, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert!(decode::<Ask>(&huge).is_err());
    }
}

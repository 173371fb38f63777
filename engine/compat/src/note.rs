//! Notifications as Mooncake has them: a name and a message.

use serde::{Deserialize, Serialize};

/// A notification. It travels as the JSON that Mooncake's nodes send each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What it is about; the sender's choice.
    pub name: String,
    /// The message.
    #[serde(rename = "notify_msg")]
    pub message: String,
}

impl Note {
    /// As it travels.
    pub fn encode(&self) -> Vec<u8> {
        // Two strings cannot fail to become JSON; an empty payload would be read as a message without text.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What a peer sent. One that is no such JSON, from a program that uses the engine directly, becomes a message under its
    /// sender's name; what is not UTF-8 in it is replaced.
    pub fn decode(from: &str, payload: &[u8]) -> Self {
        serde_json::from_slice(payload).unwrap_or_else(|_| Self {
            name: from.to_owned(),
            message: String::from_utf8_lossy(payload).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mooncakes_json_is_read_and_anything_else_is_a_message() {
        let note = Note { name: "a \"b\"".into(), message: "ü\n".into() };
        assert_eq!(Note::decode("x", &note.encode()), note);
        let theirs = Note::decode("x", br#"{"notify_msg":"m","name":"n"}"#);
        assert_eq!((theirs.name.as_str(), theirs.message.as_str()), ("n", "m"));
        let plain = Note::decode("peer:1", b"\xffhello");
        assert_eq!((plain.name.as_str(), plain.message.as_str()), ("peer:1", "\u{fffd}hello"));
    }
}

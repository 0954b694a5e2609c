//! Frames: `u32` little-endian body length, one version byte, then the message as postcard.
//!
//! The length counts the version byte and the message. A frame longer than [`MAX_FRAME`] is refused
//! before anything is allocated for it.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{MAX_FRAME, PROTOCOL_VERSION};

const LENGTH_BYTES: usize = 4;

/// The peer did not speak this protocol. The session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Another version; both sides come from one `lighter` binary unless a foreign agent answers.
    #[error(
        "the peer speaks agent protocol version {found}, this side version {PROTOCOL_VERSION}; host and guest must come from the same lighter"
    )]
    Version {
        /// What the frame said.
        found: u8,
    },
    /// The announced length is zero or above [`MAX_FRAME`].
    #[error("a frame of {length} bytes; at most {MAX_FRAME} are allowed")]
    Length {
        /// What the frame said.
        length: usize,
    },
    /// The body is no message.
    #[error("a frame that is no message")]
    Message(#[source] postcard::Error),
}

/// Appends `message` as a frame to `out`.
///
/// # Errors
/// [`FrameError::Length`] if the message is too large for a frame; `out` is then unchanged.
pub fn encode<M: Serialize>(message: &M, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend([0; LENGTH_BYTES]);
    out.push(PROTOCOL_VERSION);
    let mut encoded = match postcard::to_extend(message, std::mem::take(out)) {
        Ok(encoded) => encoded,
        Err(error) => return Err(FrameError::Message(error)),
    };
    let length = encoded.len() - start - LENGTH_BYTES;
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
    match (prefix, encoded.get_mut(start..start + LENGTH_BYTES)) {
        (Some(prefix), Some(place)) => place.copy_from_slice(&prefix.to_le_bytes()),
        _ => {
            encoded.truncate(start);
            *out = encoded;
            return Err(FrameError::Length { length });
        }
    }
    *out = encoded;
    Ok(())
}

/// Takes bytes as they arrive and gives messages as they are whole.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that were already given out.
    consumed: usize,
}

impl Decoder {
    /// Adds received bytes. Call [`Decoder::next_message`] until it gives `None` before adding more: then at most
    /// one unfinished frame is held.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, `None` if more bytes are needed.
    ///
    /// # Errors
    /// After an error the stream has lost its frame boundaries: close it.
    pub fn next_message<M: DeserializeOwned>(&mut self) -> Result<Option<M>, FrameError> {
        let rest = self.buffer.get(self.consumed..).unwrap_or_default();
        let Some((prefix, body)) = rest.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length == 0 || length > MAX_FRAME {
            return Err(FrameError::Length { length });
        }
        // The version is checked as soon as it is there: a foreign frame need not be whole.
        if let Some(found) = body.first().copied().filter(|version| *version != PROTOCOL_VERSION) {
            return Err(FrameError::Version { found });
        }
        let Some(message) = body.get(1..length) else { return Ok(None) };
        let message = postcard::from_bytes(message).map_err(FrameError::Message)?;
        self.consumed += LENGTH_BYTES + length;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{AgentMessage, HostMessage};

    fn frame<M: Serialize>(message: &M) -> Vec<u8> {
        let mut out = Vec::new();
        encode(message, &mut out).unwrap();
        out
    }

    #[test]
    fn messages_come_back_whatever_the_pieces() {
        let messages = [HostMessage::Stdin(vec![7; 5000]), HostMessage::StdinEof, HostMessage::Signal(15)];
        let bytes: Vec<u8> = messages.iter().flat_map(frame).collect();
        for piece in [1, 3, 4, 5, 1000, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for part in bytes.chunks(piece) {
                decoder.push(part);
                while let Some(message) = decoder.next_message::<HostMessage>().unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, messages, "in pieces of {piece}");
        }
    }

    #[test]
    fn bytes_are_their_number_and_themselves_on_the_wire() {
        let wire = frame(&AgentMessage::Stdout(vec![9; 300]));
        // Length of the frame, version, number of the variant, length of the bytes in sevens of bits.
        let head = [48, 1, 0, 0, PROTOCOL_VERSION, 4, 0xac, 2];
        assert_eq!((&wire[..8], &wire[8..]), (&head[..], &[9; 300][..]));
    }

    #[test]
    fn another_version_is_named_before_the_frame_is_whole() {
        let mut decoder = Decoder::default();
        decoder.push(&[200, 0, 0, 0, PROTOCOL_VERSION + 1]);
        let error = decoder.next_message::<HostMessage>().unwrap_err();
        assert!(matches!(error, FrameError::Version { found } if found == PROTOCOL_VERSION + 1));
        assert!(error.to_string().contains("version"), "{error}");
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_without_waiting_for_it() {
        for length in [0, MAX_FRAME as u32 + 1, u32::MAX] {
            let mut decoder = Decoder::default();
            decoder.push(&length.to_le_bytes());
            assert!(
                matches!(decoder.next_message::<AgentMessage>(), Err(FrameError::Length { .. })),
                "{length}"
            );
        }
    }

    #[test]
    fn a_message_too_large_for_a_frame_is_refused_and_leaves_the_output_alone() {
        let mut out = vec![1, 2, 3];
        assert!(matches!(
            encode(&HostMessage::Stdin(vec![0; MAX_FRAME]), &mut out),
            Err(FrameError::Length { .. })
        ));
        assert_eq!(out, [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            for _ in 0..=bytes.len() {
                match decoder.next_message::<AgentMessage>() {
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return Ok(()),
                }
            }
            prop_assert!(false, "more messages than bytes");
        }
    }
}

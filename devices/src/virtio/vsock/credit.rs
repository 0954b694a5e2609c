//! Flow control of one connection, both ways (virtio 1.2, section 5.10.6.3).
//!
//! Each side says how large its receive buffer is and how much of what it got it has used. Counters are
//! modulo 2^32. The guest's numbers are not trusted: they limit only what we send.

use std::num::Wrapping;

use super::header::Header;

/// Receive buffer that we grant the guest for each connection, in bytes. It bounds what a guest can make
/// the VMM hold while the host's reader is slow: this times [`super::hub::MAX_CONNECTIONS`].
pub const RECEIVE_BUFFER: u32 = 128 * 1024;

/// The guest sent more than it had credit for.
#[derive(Debug, PartialEq, Eq)]
pub struct CreditExceeded;

/// Counters of one connection.
#[derive(Debug, Default)]
pub struct Credit {
    /// Bytes that we sent.
    sent: Wrapping<u32>,
    /// The guest's buffer.
    peer_buf_alloc: u32,
    /// What the guest has used of what we sent.
    peer_fwd_cnt: Wrapping<u32>,
    /// Bytes that the guest sent.
    received: Wrapping<u32>,
    /// What of it has left our buffer.
    forwarded: Wrapping<u32>,
    /// `forwarded` as the guest knows it.
    announced: Wrapping<u32>,
}

impl Credit {
    /// Takes the guest's credit from a packet of it.
    pub fn learn(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = Wrapping(header.fwd_cnt);
    }

    /// Writes our credit into a packet that is about to go out.
    pub fn announce(&mut self, header: &mut Header) {
        header.buf_alloc = RECEIVE_BUFFER;
        header.fwd_cnt = self.forwarded.0;
        self.announced = self.forwarded;
    }

    /// How many bytes the guest has room for.
    pub fn sendable(&self) -> usize {
        let in_flight = self.sent - self.peer_fwd_cnt;
        let free = self.peer_buf_alloc.saturating_sub(in_flight.0);
        usize::try_from(free).unwrap_or(usize::MAX)
    }

    /// We sent `len` bytes, at most [`Credit::sendable`].
    pub fn on_sent(&mut self, len: u32) {
        self.sent += Wrapping(len);
    }

    /// The guest sent `len` bytes.
    pub fn on_received(&mut self, len: u32) -> Result<(), CreditExceeded> {
        let held = (self.received - self.forwarded).0;
        match held.checked_add(len) {
            Some(total) if total <= RECEIVE_BUFFER => {
                self.received += Wrapping(len);
                Ok(())
            }
            _ => Err(CreditExceeded),
        }
    }

    /// `len` received bytes left our buffer.
    pub fn on_forwarded(&mut self, len: u32) {
        self.forwarded += Wrapping(len);
    }

    /// Nothing is left in our buffer.
    pub fn on_all_forwarded(&mut self) {
        self.forwarded = self.received;
    }

    /// Whether the guest should hear of room that it does not know of.
    ///
    /// It should when it believes that more than half of our buffer is taken, and the news is worth a
    /// packet: a quarter of the buffer, or all that it sent.
    pub fn update_due(&self) -> bool {
        let taken = (self.received - self.announced).0;
        let news = (self.forwarded - self.announced).0;
        let worth = news >= RECEIVE_BUFFER / 4 || self.forwarded == self.received;
        taken > RECEIVE_BUFFER / 2 && news > 0 && worth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header { buf_alloc, fwd_cnt, ..Header::default() }
    }

    #[test]
    fn nothing_may_be_sent_before_the_guest_grants_credit() {
        assert_eq!(Credit::default().sendable(), 0);
    }

    #[test]
    fn sending_uses_credit_and_the_guest_gives_it_back() {
        let mut credit = Credit::default();
        credit.learn(&peer(100, 0));
        credit.on_sent(70);
        assert_eq!(credit.sendable(), 30);
        credit.learn(&peer(100, 50));
        assert_eq!(credit.sendable(), 80);
    }

    #[test]
    fn counters_wrap_around() {
        let mut credit = Credit { sent: Wrapping(u32::MAX), ..Credit::default() };
        credit.on_sent(11);
        credit.learn(&peer(100, u32::MAX));
        assert_eq!(credit.sendable(), 89);
    }

    #[test]
    fn a_guest_that_used_more_than_it_got_has_no_credit() {
        let mut credit = Credit::default();
        credit.learn(&peer(100, 5));
        assert_eq!(credit.sendable(), 0);
    }

    #[test]
    fn one_byte_beyond_the_buffer_is_refused() {
        let mut credit = Credit::default();
        assert_eq!(credit.on_received(RECEIVE_BUFFER), Ok(()));
        assert_eq!(credit.on_received(1), Err(CreditExceeded));
        credit.on_forwarded(1);
        assert_eq!(credit.on_received(1), Ok(()));
        assert_eq!(credit.on_received(u32::MAX), Err(CreditExceeded));
    }

    #[test]
    fn an_update_is_due_once_half_of_the_buffer_is_hidden() {
        let mut credit = Credit::default();
        credit.on_received(RECEIVE_BUFFER / 2).unwrap();
        credit.on_forwarded(RECEIVE_BUFFER / 2);
        assert!(!credit.update_due());
        credit.on_received(1).unwrap();
        assert!(credit.update_due());
        credit.on_forwarded(1);
        credit.announce(&mut Header::default());
        assert!(!credit.update_due());
    }

    #[test]
    fn a_slow_reader_causes_no_update_for_every_byte() {
        let mut credit = Credit::default();
        credit.on_received(RECEIVE_BUFFER).unwrap();
        credit.on_forwarded(1);
        assert!(!credit.update_due());
        credit.on_forwarded(RECEIVE_BUFFER / 4);
        assert!(credit.update_due());
    }
}

//! What a guest hears of a packet that was denied: that it is prohibited, so that it need not wait in vain.

use std::net::IpAddr;

use super::packet::{ETHERNET, ICMP, ICMP6};

/// Most of a denied packet that is shown to who sent it: what an IPv6 packet of least size has room for (RFC 4443,
/// section 2.4).
const MAX_QUOTED: usize = 1280 - 40 - 8;
/// "Destination unreachable: communication administratively prohibited" (RFC 1812, section 5.2.7.1).
const PROHIBITED4: [u8; 2] = [3, 13];
/// The same (RFC 4443, section 3.1).
const PROHIBITED6: [u8; 2] = [1, 1];

/// The frame that answers `denied`, which came from the guest; `None` if nobody is to be told.
pub fn refusal(denied: &[u8]) -> Option<Vec<u8>> {
    let (to, rest) = denied.split_first_chunk::<6>()?;
    let (from, _) = rest.split_first_chunk::<6>()?;
    let packet = denied.get(ETHERNET..)?;
    let addresses =
        |at: usize, len: usize| Some((packet.get(at..at + len)?, packet.get(at + len..at + 2 * len)?));
    let is_four = denied.get(12..ETHERNET)? == [0x08, 0x00];
    let (sender, receiver) = if is_four { addresses(12, 4)? } else { addresses(8, 16)? };
    // Nobody is told of errors of errors, and of what went to many (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
    let is_error = if is_four {
        let header = usize::from(packet.first()? & 0xf) * 4;
        *packet.get(9)? == ICMP && !matches!(packet.get(header)?, 0 | 8)
    } else {
        *packet.get(6)? == ICMP6 && *packet.get(40)? < 128
    };
    let receiver_ip = if is_four { ip::<4>(receiver)? } else { ip::<16>(receiver)? };
    if is_error || to.first()? & 1 != 0 || receiver_ip.is_multicast() {
        return None;
    }
    // IPv4 needs but the header and eight bytes (RFC 792).
    let quoted = packet.get(..packet.len().min(if is_four { 60 + 8 } else { MAX_QUOTED }))?;
    let mut message = if is_four { PROHIBITED4 } else { PROHIBITED6 }.to_vec();
    message.extend([0; 6]);
    message.extend(quoted);
    let length = u16::try_from(message.len()).ok()?;
    let pseudo = if is_four {
        Vec::new()
    } else {
        [receiver, sender, &u32::from(length).to_be_bytes(), &[0, 0, 0, ICMP6]].concat()
    };
    let sum = checksum(&[&pseudo, &message]);
    message.splice(2..4, sum);
    let head = if is_four {
        let [high, low] = (length + 20).to_be_bytes();
        let head = [&[0x45, 0, high, low, 0, 0, 0x40, 0, 64, ICMP, 0, 0][..], receiver, sender].concat();
        let sum = checksum(&[&head]);
        [&head[..10], &sum, &head[12..]].concat()
    } else {
        let [high, low] = length.to_be_bytes();
        [&[0x60, 0, 0, 0, high, low, ICMP6, 64][..], receiver, sender].concat()
    };
    Some([from, to, denied.get(12..ETHERNET)?, &head, &message].concat())
}

fn ip<const N: usize>(octets: &[u8]) -> Option<IpAddr>
where
    IpAddr: From<[u8; N]>,
{
    octets.first_chunk::<N>().map(|octets| IpAddr::from(*octets))
}

/// The internet checksum (RFC 1071) of parts of even length, but for the last one.
pub fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 =
        words.map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from)).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!u16::try_from(folded).unwrap_or(u16::MAX)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::{frame, to_port};
    use super::super::packet::{Frame, TCP, UDP, read};
    use super::*;

    #[test]
    fn whoever_is_denied_is_told_by_whom_it_called() {
        for (destination, protocol, head) in [("192.0.2.1", ICMP, 20), ("2001:db8::1", ICMP6, 40)] {
            let mut denied = to_port(destination, TCP, 443);
            denied[..6].copy_from_slice(&[4; 6]);
            let answer = refusal(&denied).unwrap();
            assert_eq!((&answer[..6], &answer[6..12]), (&[2; 6][..], &[4; 6][..]));
            assert_eq!(read(&answer), Frame::Chatter, "it is an error");
            let (source, kind) = if head == 20 { (26..30, 23) } else { (22..38, 20) };
            let called = if head == 20 { denied[30..34].to_vec() } else { denied[38..54].to_vec() };
            assert_eq!((&answer[source], answer[kind]), (&called[..], protocol));
            // A sum over what holds its own sum is nothing.
            let message = &answer[ETHERNET + head..];
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            let addresses = if head == 40 { &answer[22..54] } else { &[][..] };
            let tail = if head == 40 { [length, [0, 0, 0, ICMP6]].concat() } else { Vec::new() };
            assert_eq!(checksum(&[addresses, &tail, message]), [0, 0]);
            assert!(head == 40 || checksum(&[&answer[ETHERNET..34]]) == [0, 0]);
            assert_eq!(message[8..], denied[ETHERNET..]);
        }
    }

    #[test]
    fn nobody_is_told_of_errors_and_of_what_went_to_many() {
        let denied = |frame: Vec<u8>| refusal(&frame).is_some();
        assert!(denied(frame("192.0.2.1", ICMP, &[8; 8])) && !denied(frame("192.0.2.1", ICMP, &[3; 8])));
        assert!(
            denied(frame("2001:db8::1", ICMP6, &[128; 8])) && !denied(frame("2001:db8::1", ICMP6, &[1; 8]))
        );
        assert!(!denied(to_port("224.0.0.251", UDP, 5353)) && !denied(to_port("ff02::fb", UDP, 5353)));
        let mut broadcast = to_port("10.0.2.255", UDP, 137);
        broadcast[..6].fill(0xff);
        assert!(!denied(broadcast));
        for len in 0..34 {
            assert_eq!(refusal(&to_port("192.0.2.1", UDP, 1)[..len]), None);
        }
    }

    #[test]
    fn a_long_packet_is_shown_in_part() {
        let long = |destination| refusal(&frame(destination, UDP, &[0; 1400])).unwrap().len();
        assert_eq!((long("192.0.2.1"), long("2001:db8::1")), (14 + 20 + 8 + 68, 14 + 1280));
    }
}

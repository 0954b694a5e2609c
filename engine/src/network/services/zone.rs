//! The names that lighter knows: those of the containers in the same networks.
//!
//! They are read when somebody asks, from the leases, so there is nothing to keep in step.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;

use simple_dns::rdata::{A, AAAA, PTR, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, TYPE};
use tokio::task::spawn_blocking;

use crate::network::egress::{Destination, EgressRule};
use crate::network::guest::Guest;
use crate::network::nft;
use crate::network::services::Places;
use crate::network::wire::Filter;

/// Seconds for which an answer holds: containers come and go.
const TTL: u32 = 5;
/// Addresses in one answer: so many fit a datagram whatever the name.
const MAX_ADDRESSES: usize = 12;
/// Addresses that names have opened for one container (stops a hostile name server from filling the kernel).
const MAX_ALLOWED: usize = 1024;

/// What is known around one container.
pub struct Zone {
    places: RefCell<Places>,
    /// What the packet filter lets through by name.
    allowed: RefCell<HashSet<(IpAddr, Option<u16>)>>,
    /// In user mode, that is this one.
    filter: Option<Arc<Filter>>,
}

/// What to do with a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Say this.
    Answer(Vec<u8>),
    /// Ask somebody else.
    Forward,
    /// It is none.
    Ignore,
}

impl Zone {
    /// Around the container in `places`, or behind `filter`.
    pub fn new(places: Places, filter: Option<Arc<Filter>>) -> Self {
        Self { places: places.into(), allowed: RefCell::default(), filter }
    }

    /// The container is in these places from now on.
    pub fn set_places(&self, places: Places) {
        *self.places.borrow_mut() = places;
        // What a name has opened before is opened anew, there too.
        self.allowed.borrow_mut().clear();
    }

    /// What to do with the message `query`.
    pub fn decide(&self, query: &[u8]) -> Decision {
        let guests: Vec<(String, Guest)> = self
            .places
            .borrow()
            .iter()
            .flat_map(|(bridge, _)| {
                let network = bridge.settings.network.clone();
                bridge.listed().into_iter().map(move |guest| (network.clone(), guest))
            })
            .collect();
        decide(query, &guests)
    }

    /// Opens the way to the addresses in `answer` if `--egress-allow` names what was asked for.
    pub async fn allow_answer(&self, answer: &[u8]) {
        let Ok(packet) = Packet::parse(answer) else { return };
        let Some(question) = packet.questions.first() else { return };
        let name = question.qname.to_string().to_ascii_lowercase();
        // An answer may come by way of aliases: what counts is the name that was asked for.
        let addresses = packet.answers.iter().filter_map(|record| match &record.rdata {
            RData::A(record) => Some(IpAddr::V4(Ipv4Addr::from(record.address))),
            RData::AAAA(record) => Some(IpAddr::V6(Ipv6Addr::from(record.address))),
            _ => None,
        });
        self.allow(&name, addresses.collect()).await;
    }

    /// Resolves every name of `--egress-allow`: a container may know the address from elsewhere.
    pub fn allow_known_names(self: &Rc<Self>, servers: &[IpAddr]) {
        for name in self.rules().into_iter().filter_map(|rule| match &rule.destination {
            Destination::Name(name) => Some(name.clone()),
            Destination::Range(..) => None,
        }) {
            let (zone, servers) = (self.clone(), servers.to_vec());
            tokio::task::spawn_local(async move {
                for kind in [TYPE::A, TYPE::AAAA] {
                    let Some(query) = query(&name, kind) else { return };
                    let answer = match zone.decide(&query) {
                        Decision::Answer(answer) => Some(answer),
                        _ => super::upstream::ask(&servers, &query, false).await,
                    };
                    if let Some(answer) = answer {
                        zone.allow_answer(&answer).await;
                    }
                }
            });
        }
    }

    fn rules(&self) -> Vec<EgressRule> {
        if let Some(filter) = &self.filter {
            return filter.rules().to_vec();
        }
        // The same in every place.
        let places = self.places.borrow();
        let egress = places.first().and_then(|(_, guest)| guest.egress.as_ref());
        egress.map(|egress| egress.rules.clone()).unwrap_or_default()
    }

    async fn allow(&self, name: &str, addresses: Vec<IpAddr>) {
        let mut script = String::new();
        for rule in self.rules().iter().filter(|rule| rule.destination == Destination::Name(name.to_owned()))
        {
            for &address in &addresses {
                // A name must not lead into the host itself.
                let is_new = !address.is_loopback()
                    && self.allowed.borrow().len() < MAX_ALLOWED
                    && self.allowed.borrow_mut().insert((address, rule.port));
                if let Some(filter) = self.filter.iter().find(|_| is_new) {
                    filter.allow(address, rule.port);
                }
                for (bridge, guest) in self.places.borrow().iter().filter(|_| is_new) {
                    script += &bridge.rules().allow(&guest.tap, rule, address);
                }
            }
        }
        if !script.is_empty() {
            // Without it the container is denied what it may have, which it is told as of everything else.
            let _ = spawn_blocking(move || nft::run(&script)).await;
        }
    }
}

/// A question for `name`.
fn query(name: &str, kind: TYPE) -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(u16::from_ne_bytes([crate::container::id::random()[0], 1]));
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).ok()?;
    packet.questions.push(Question::new(name, QTYPE::TYPE(kind), CLASS::IN.into(), false));
    packet.build_bytes_vec().ok()
}

/// What to do with the message `query`, which anybody may have made, among these containers and their networks.
pub fn decide(query: &[u8], guests: &[(String, Guest)]) -> Decision {
    let Ok(packet) = Packet::parse(query) else {
        return malformed(query);
    };
    if packet.has_flags(PacketFlag::RESPONSE) {
        return Decision::Ignore;
    }
    let [question] = packet.questions.as_slice() else { return malformed(query) };
    if packet.opcode() != OPCODE::StandardQuery {
        return Decision::Forward;
    }
    let name = question.qname.to_string().to_ascii_lowercase();
    let records = if let Some(address) = reverse(&name) {
        let known = guests
            .iter()
            .find(|(_, guest)| guest.ipv4 == address || guest.ipv6.is_some_and(|six| six == address));
        let Some((network, guest)) = known else { return Decision::Forward };
        let target = format!("{}.{network}", guest.name);
        let Ok(target) = Name::new(&target) else { return Decision::Forward };
        vec![RData::PTR(PTR(target.into_owned()))]
    } else {
        let known: Vec<&Guest> = guests
            .iter()
            .filter(|(network, guest)| guest.names().any(|own| matches(&name, own, network)))
            .map(|(_, guest)| guest)
            .collect();
        if known.is_empty() {
            return Decision::Forward;
        }
        addresses(&known, question.qtype)
    };
    answer(&packet, question, records).map_or(Decision::Ignore, Decision::Answer)
}

/// Whether `asked`, in lower case, is `own` or `own.network`.
fn matches(asked: &str, own: &str, network: &str) -> bool {
    let Some((head, tail)) = asked.split_at_checked(own.len()) else { return false };
    head.eq_ignore_ascii_case(own)
        && (tail.is_empty() || tail.strip_prefix('.').is_some_and(|tail| tail.eq_ignore_ascii_case(network)))
}

/// The addresses of the type that is asked for, beginning anywhere: containers with the same alias share the work.
fn addresses(guests: &[&Guest], kind: QTYPE) -> Vec<RData<'static>> {
    let four = matches!(kind, QTYPE::TYPE(TYPE::A) | QTYPE::ANY);
    let six = matches!(kind, QTYPE::TYPE(TYPE::AAAA) | QTYPE::ANY);
    let start = usize::from(crate::container::id::random()[0]) % guests.len().max(1);
    let turned = guests.iter().cycle().skip(start).take(guests.len());
    turned
        .flat_map(|guest| {
            let a = four.then(|| RData::A(A { address: guest.ipv4.into() }));
            let aaaa = guest.ipv6.filter(|_| six).map(|ipv6| RData::AAAA(AAAA { address: ipv6.into() }));
            a.into_iter().chain(aaaa)
        })
        .take(MAX_ADDRESSES)
        .collect()
}

fn answer(query: &Packet<'_>, question: &Question<'_>, records: Vec<RData<'_>>) -> Option<Vec<u8>> {
    let mut reply = Packet::new_reply(query.id());
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    reply.questions.push(question.clone());
    let record = |data| ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data);
    reply.answers = records.into_iter().map(record).collect();
    reply.build_bytes_vec().ok()
}

/// Says that the message is none, if so much can be read that there is somebody to tell.
fn malformed(query: &[u8]) -> Decision {
    let Some((&[a, b], rest)) = query.split_first_chunk::<2>() else { return Decision::Ignore };
    // The bit QR: an answer is not answered.
    if query.len() < 12 || rest.first().is_none_or(|flags| flags & 0x80 != 0) {
        return Decision::Ignore;
    }
    let mut reply = Packet::new_reply(u16::from_be_bytes([a, b]));
    *reply.rcode_mut() = RCODE::FormatError;
    reply.build_bytes_vec().map_or(Decision::Ignore, Decision::Answer)
}

/// Says that nobody could be asked.
pub fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let packet = Packet::parse(query).ok()?;
    let mut reply = Packet::new_reply(packet.id());
    *reply.rcode_mut() = RCODE::ServerFailure;
    reply.questions = packet.questions.clone();
    reply.build_bytes_vec().ok()
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for (RFC 1035, section 3.5; RFC 3596, 2.5).
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut parts: Vec<u8> = digits.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        parts.reverse();
        return Some(IpAddr::from(<[u8; 4]>::try_from(parts).ok()?));
    }
    let digits: Vec<&str> = name.strip_suffix(".ip6.arpa")?.split('.').collect();
    let text: String = digits.iter().rev().copied().collect();
    let whole = digits.len() == 32 && digits.iter().all(|digit| digit.len() == 1);
    let number = whole.then(|| u128::from_str_radix(&text, 16).ok()).flatten()?;
    Some(IpAddr::from(Ipv6Addr::from(number)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::network::guest::tests::guest;

    fn guests() -> Vec<(String, Guest)> {
        let first = Guest { ipv6: Some("fd00::2".parse().unwrap()), ..guest() };
        let second = Guest {
            name: "web".into(),
            container: "ba9876543210".into(),
            ipv4: [10, 77, 0, 3].into(),
            ..guest()
        };
        vec![("net".into(), first), ("net".into(), second)]
    }

    fn ask(name: &str, kind: TYPE) -> Option<Vec<String>> {
        match decide(&query(name, kind).unwrap(), &guests()) {
            Decision::Answer(bytes) => {
                let packet = Packet::parse(&bytes).unwrap();
                assert_eq!(packet.rcode(), RCODE::NoError);
                let mut found: Vec<_> = packet
                    .answers
                    .iter()
                    .map(|record| match &record.rdata {
                        RData::A(a) => Ipv4Addr::from(a.address).to_string(),
                        RData::AAAA(a) => Ipv6Addr::from(a.address).to_string(),
                        RData::PTR(name) => name.0.to_string(),
                        other => format!("{other:?}"),
                    })
                    .collect();
                found.sort();
                Some(found)
            }
            Decision::Forward => None,
            Decision::Ignore => panic!("ignored"),
        }
    }

    #[test]
    fn names_aliases_ids_and_addresses_are_known() {
        let one = |text: &str| Some(vec![text.to_owned()]);
        assert_eq!(ask("barge", TYPE::A), one("10.77.0.2"));
        assert_eq!(ask("BARGE.net", TYPE::A), one("10.77.0.2"));
        assert_eq!(ask("ba9876543210", TYPE::A), one("10.77.0.3"));
        assert_eq!(ask("db", TYPE::A), Some(vec!["10.77.0.2".into(), "10.77.0.3".into()]));
        assert_eq!(ask("barge", TYPE::AAAA), one("fd00::2"));
        assert_eq!(ask("web", TYPE::AAAA), Some(Vec::new()));
        assert_eq!(ask("web", TYPE::MX), Some(Vec::new()));
        assert_eq!(ask("3.0.77.10.in-addr.arpa", TYPE::PTR), one("web.net"));
        let six = format!("2.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(ask(&six, TYPE::PTR), one("barge.net"));
    }

    #[test]
    fn everything_else_is_asked_elsewhere() {
        for name in ["example.com", "barge.other", "barges", "bar", "9.9.9.9.in-addr.arpa"] {
            assert_eq!(ask(name, TYPE::A), None, "{name}");
        }
    }

    #[test]
    fn what_is_no_question_is_said_to_be_none_or_ignored() {
        assert_eq!(decide(&[1, 2], &[]), Decision::Ignore);
        let Decision::Answer(reply) = decide(&[0xab, 0xcd, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 1], &[]) else {
            panic!()
        };
        assert_eq!((reply[0], reply[1], reply[3] & 0xf), (0xab, 0xcd, 1));
        let Decision::Answer(reply) = decide(&query("barge", TYPE::A).unwrap(), &guests()) else { panic!() };
        assert_eq!(decide(&reply, &guests()), Decision::Ignore);
        assert_eq!(failure(&query("x", TYPE::A).unwrap()).unwrap()[3] & 0xf, 2);
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_guest_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decide(&bytes, &guests());
            let _ = failure(&bytes);
        }

        #[test]
        fn nor_do_bytes_that_begin_as_a_question(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            bytes.extend(tail);
            let _ = decide(&bytes, &guests());
        }
    }
}

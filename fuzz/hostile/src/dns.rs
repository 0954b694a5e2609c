//! Questions about names, from the guest.

use engine::network::guest::Guest;
use engine::network::services::zone::{Decision, decide};

/// A question among two containers; what is answered must again be a message that is no question.
pub fn run(bytes: &[u8]) {
    let guest = |name: &str, last: u8| Guest {
        container: format!("{name}-id"),
        name: name.into(),
        aliases: vec!["web".into()],
        tap: "lt0".into(),
        mac: serde_json::from_str("\"02:6c:0a:00:02:0f\"").unwrap(),
        ipv4: [10, 88, 0, last].into(),
        ipv6: Some([0xfd6c, 0, 0, 0, 0, 0, 0, last.into()].into()),
        ports: Vec::new(),
        egress: None,
    };
    let guests = [("bridge".to_owned(), guest("db", 2)), ("bridge".to_owned(), guest("app", 3))];
    if let Decision::Answer(answer) = decide(bytes, &guests) {
        assert!(answer.len() >= 12 && answer[2] & 0x80 != 0, "{answer:x?}");
        assert_eq!(decide(&answer, &guests), Decision::Ignore, "an answer is answered");
    }
}

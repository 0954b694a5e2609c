//! Kernel work that only wakes an idle machine: on a host with hundreds of them it is what they cost.

/// Settings below `/proc/sys/vm`, with what they end: proactive compaction, twice a second, and folding
/// per-CPU statistics, once a second.
const SETTINGS: [(&str, &str); 2] = [("compaction_proactiveness", "0"), ("stat_interval", "3600")];

/// Makes them. A kernel that lacks one lacks its wake-ups too.
pub fn settle() {
    for (name, value) in SETTINGS {
        let _ = std::fs::write(format!("/proc/sys/vm/{name}"), value);
    }
}

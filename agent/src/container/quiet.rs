//! What an idle machine costs its host: kernel work that only wakes it, and free memory that it keeps.

/// Settings below `/proc/sys/vm`, with what they end: proactive compaction, twice a second; folding per-CPU
/// statistics, once a second; an eighth of the memory kept free for each CPU, which is not reported as free and
/// which only that folding would give up.
const SETTINGS: [(&str, &str); 3] =
    [("compaction_proactiveness", "0"), ("stat_interval", "3600"), ("percpu_pagelist_high_fraction", "1024")];

/// Makes them. A kernel that lacks one lacks its wake-ups too.
pub fn settle() {
    for (name, value) in SETTINGS {
        let _ = std::fs::write(format!("/proc/sys/vm/{name}"), value);
    }
}

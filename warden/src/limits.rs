//! The one resource limit that every container gets: many open files, where this host's root may raise limits at all.

use agent_protocol::message::ProcessPlan;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What lighter asks for where the user says nothing (`engine::plan::ulimit`). A guest's kernel always grants it.
const DEFAULT: (&str, u64, u64) = ("RLIMIT_NOFILE", 1024, 524_288);

/// `plan` with the default limit as far as this host allows it. What a user asks for stays, and fails if it must.
pub fn possible(plan: &ProcessPlan) -> ProcessPlan {
    let mut plan = plan.clone();
    let most = most();
    for (name, soft, hard) in &mut plan.rlimits {
        if (name.as_str(), *soft, *hard) == DEFAULT {
            (*soft, *hard) = ((*soft).min(most), most);
        }
    }
    plan
}

/// Open files that this process may grant, at most the default.
fn most() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: now.current, maximum: Some(DEFAULT.2) };
    match now.maximum.is_none_or(|hard| hard >= DEFAULT.2) || setrlimit(Resource::Nofile, wanted).is_ok() {
        true => DEFAULT.2,
        // Without CAP_SYS_RESOURCE, as in many sandboxes.
        false => now.maximum.unwrap_or(DEFAULT.2),
    }
}

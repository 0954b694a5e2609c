//! Figures of the server for Prometheus, beside those of the containers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper ends of the classes of durations, in seconds.
const CLASSES: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0];

/// Counts what is asked.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Connections that are open.
    pub connections: AtomicUsize,
    /// Connections that were refused because there were too many.
    pub refused: AtomicU64,
    /// Streams of events that are open.
    pub event_streams: AtomicUsize,
    requests: Mutex<BTreeMap<(&'static str, u16), Series>>,
}

#[derive(Debug, Default)]
struct Series {
    count: u64,
    seconds: f64,
    classes: [u64; CLASSES.len()],
}

impl Metrics {
    /// A request to `operation` was answered with `status`.
    pub fn count(&self, operation: &'static str, status: u16, took: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let series = requests.entry((operation, status)).or_default();
        let seconds = took.as_secs_f64();
        series.count += 1;
        series.seconds += seconds;
        for (count, end) in series.classes.iter_mut().zip(CLASSES) {
            *count += u64::from(seconds <= end);
        }
    }

    /// As Prometheus reads them, text exposition format 0.0.4.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut plain = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        let (connections, streams) =
            (self.connections.load(Ordering::Relaxed), self.event_streams.load(Ordering::Relaxed));
        plain("lighter_api_connections", "gauge", "Connections that are open.", connections as u64);
        plain("lighter_api_event_streams", "gauge", "Streams of events that are open.", streams as u64);
        let refused = self.refused.load(Ordering::Relaxed);
        plain("lighter_api_connections_refused_total", "counter", "Connections beyond the limit.", refused);
        let name = "lighter_api_request_duration_seconds";
        let _ = writeln!(text, "# HELP {name} Time until the head of the answer.\n# TYPE {name} histogram");
        for ((operation, status), series) in &*self.requests.lock().unwrap_or_else(PoisonError::into_inner) {
            let labels = format!("operation=\"{operation}\",status=\"{status}\"");
            for (count, end) in series.classes.iter().zip(CLASSES) {
                let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{end}\"}} {count}");
            }
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.count);
            let _ = writeln!(text, "{name}_sum{{{labels}}} {}", series.seconds);
            let _ = writeln!(text, "{name}_count{{{labels}}} {}", series.count);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_in_classes() {
        let metrics = Metrics::default();
        metrics.count("x", 200, Duration::from_millis(3));
        metrics.count("x", 200, Duration::from_secs(1000));
        let text = metrics.text();
        assert!(text.contains("operation=\"x\",status=\"200\",le=\"0.001\"} 0"), "{text}");
        assert!(text.contains("le=\"60\"} 1") && text.contains("le=\"+Inf\"} 2"), "{text}");
    }
}

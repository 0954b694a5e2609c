//! Bars for a pull, on stderr and only where that is a terminal.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use images::{Digest, Event, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the whole is drawn in a second.
const DRAWS_PER_SECOND: u8 = 10;

/// One bar a layer, and a line for what has no length.
pub struct Bars {
    all: MultiProgress,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    /// Nothing to show yet. Where stderr is no terminal nothing is ever shown.
    pub fn new() -> Self {
        let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
        Self { all: MultiProgress::with_draw_target(target), bars: Mutex::default() }
    }

    /// Takes everything off the terminal.
    pub fn clear(&self) {
        self.bars.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // Fails only where the terminal is gone.
        let _ = self.all.clear();
    }

    fn layer(&self, digest: &Digest, size: u64) -> ProgressBar {
        self.bar(digest.short(), || {
            let bar = ProgressBar::new(size);
            let style = "{prefix} {bar:30} {bytes:>10}/{total_bytes:10} {msg}";
            bar.set_style(
                ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_prefix(digest.short().to_owned());
            bar
        })
    }

    fn line(&self, key: &str, message: String) {
        let bar = self.bar(key, || {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        bar.set_message(message);
    }

    fn bar(&self, key: &str, make: impl FnOnce() -> ProgressBar) -> ProgressBar {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = bars.get(key) {
            return bar.clone();
        }
        let bar = self.all.add(make());
        bars.insert(key.to_owned(), bar.clone());
        bar
    }

    fn finish(&self, key: &str) {
        if let Some(bar) = self.bars.lock().unwrap_or_else(PoisonError::into_inner).remove(key) {
            bar.finish_and_clear();
        }
    }
}

/// Key of the line about the image as a whole.
const IMAGE: &str = "image";

impl Progress for Bars {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Resolving { image } => self.line(IMAGE, format!("resolving {image}")),
            Event::Resolved { layers, bytes, .. } => {
                self.line(IMAGE, format!("{layers} layers, {}", crate::output::human_size(bytes)));
            }
            Event::LayerWaiting { digest } => {
                self.layer(digest, 0).set_message("another lighter fetches it");
            }
            Event::LayerStarted { digest, size, resumed_at } => {
                let bar = self.layer(digest, size);
                bar.set_length(size);
                bar.set_position(resumed_at);
                bar.set_message(if resumed_at > 0 { "goes on" } else { "" });
            }
            Event::LayerBytes { digest, position } => self.layer(digest, 0).set_position(position),
            Event::LayerCached { digest } | Event::LayerDone { digest } => self.finish(digest.short()),
            Event::Retrying { what, reason, attempt } => {
                let _ = self.all.println(format!("lighter: note: {what}: {reason}; attempt {attempt}"));
            }
            Event::RootfsBytes { position } => {
                let size = crate::output::human_size(position);
                self.line(IMAGE, format!("building the root filesystem: {size}"));
            }
            Event::RootfsDone { .. } => self.finish(IMAGE),
            Event::RootfsUnreadable { path } => {
                crate::output::notice(&format!(
                    "{} cannot be read by this user and is left out",
                    path.display()
                ));
            }
        }
    }
}

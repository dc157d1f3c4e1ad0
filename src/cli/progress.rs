//! How a load, a pull or a push goes on: a bar per layer on a terminal, plain lines elsewhere. On standard error.
#![allow(clippy::print_stderr)]

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::format::size;
use crate::engine::load::Progress;
use crate::engine::{check, push};

/// A layer's bar, the counter that it follows, and whether that is the last one.
type Watched = (ProgressBar, Arc<AtomicU64>, bool);

/// Bars or lines.
pub(super) struct Layers {
    /// Whether each layer keeps its line from the beginning, as Docker's do that are pulled or pushed.
    keeping: bool,
    bars: Option<MultiProgress>,
    watched: Arc<Mutex<HashMap<String, Watched>>>,
    done: Arc<AtomicBool>,
}

impl Layers {
    /// Of a load; `quiet` shows nothing.
    pub(super) fn new(quiet: bool) -> Option<Self> {
        Self::start(quiet, false)
    }

    /// Of a pull; `quiet` shows nothing.
    pub(super) fn pulling(quiet: bool) -> Option<Self> {
        Self::start(quiet, true)
    }

    /// Of a push; `quiet` shows nothing.
    pub(super) fn pushing(quiet: bool) -> Option<Self> {
        Self::start(quiet, true)
    }

    fn start(quiet: bool, keeping: bool) -> Option<Self> {
        if quiet {
            return None;
        }
        let layers = Self {
            keeping,
            bars: std::io::stderr().is_terminal().then(MultiProgress::new),
            watched: Arc::default(),
            done: Arc::default(),
        };
        if layers.bars.is_some() {
            let (watched, done) = (Arc::clone(&layers.watched), Arc::clone(&layers.done));
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for (bar, read, _) in watched.lock().unwrap_or_else(PoisonError::into_inner).values() {
                        bar.set_position(read.load(Ordering::Relaxed));
                    }
                    std::thread::sleep(Duration::from_millis(80));
                }
            });
        }
        Some(layers)
    }

    /// What a layer comes to, in its own line if it has one.
    fn say(&self, layer: &str, what: &str) {
        if let (true, Some(bars)) = (self.keeping, &self.bars) {
            let bar = self.take(layer).unwrap_or_else(|| bars.add(ProgressBar::new(0)));
            bar.set_style(style("{msg}"));
            return bar.finish_with_message(format!("{layer}: {what}"));
        }
        if let Some(bar) = self.take(layer) {
            bar.finish_and_clear();
        }
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(format!("{layer}: {what}"));
            }
            None => eprintln!("{layer}: {what}"),
        }
    }

    /// The same where there are no bars, which say it by themselves.
    fn say_plainly(&self, layer: &str, what: &str) {
        if self.bars.is_none() {
            eprintln!("{layer}: {what}");
        }
    }

    fn take(&self, layer: &str) -> Option<ProgressBar> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(layer).map(|(bar, ..)| bar)
    }

    /// Let a layer's bar, which it may have already, follow a counter. Fetching may begin after the unpacking that waits for
    /// it, and isn't shown then.
    fn watch(&self, layer: &str, look: &str, total: Option<u64>, read: &Arc<AtomicU64>, last: bool) {
        let Some(bars) = &self.bars else { return };
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.get(layer).is_some_and(|(_, _, is_last)| *is_last && !last) {
            return;
        }
        let known = watched.remove(layer).map(|(bar, ..)| bar);
        let bar = known.unwrap_or_else(|| bars.add(ProgressBar::no_length()));
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(read.load(Ordering::Relaxed));
        bar.set_message(layer.to_string());
        bar.set_style(style(look));
        watched.insert(layer.to_string(), (bar, Arc::clone(read), last));
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

impl Progress for Layers {
    fn waiting(&self, layer: &str) {
        self.watch(layer, "{msg}: Pulling fs layer", None, &Arc::default(), false);
        self.say_plainly(layer, "Pulling fs layer");
    }

    fn fetching(&self, layer: &str, total: u64, fetched: &Arc<AtomicU64>) {
        let look = "{msg}: Downloading {bar:30} {decimal_bytes}/{decimal_total_bytes}";
        self.watch(layer, look, Some(total), fetched, false);
    }

    fn fetched(&self, layer: &str) {
        self.watch(layer, "{msg}: Download complete", None, &Arc::default(), false);
        self.say_plainly(layer, "Download complete");
    }

    fn started(&self, layer: &str, total: Option<u64>, read: &Arc<AtomicU64>) {
        let look = match (total, self.keeping) {
            (Some(_), true) => "{msg}: Extracting  {bar:30} {decimal_bytes}/{decimal_total_bytes}",
            (Some(_), false) => "{msg}: {bar:40} {decimal_bytes}/{decimal_total_bytes}",
            (None, _) => "{msg}: {decimal_bytes} {spinner}",
        };
        self.watch(layer, look, total, read, true);
        // What is pulled has its lines already.
        if !self.keeping {
            let of = total.map(|total| format!(" {}", size(total)));
            self.say_plainly(layer, &format!("Loading{}", of.unwrap_or_default()));
        }
    }

    fn exists(&self, layer: &str) {
        self.say(layer, "Already exists");
    }

    fn finished(&self, layer: &str) {
        self.say(layer, if self.keeping { "Pull complete" } else { "Load complete" });
    }
}

impl push::Progress for Layers {
    fn preparing(&self, layer: &str) {
        self.watch(layer, "{msg}: Preparing", None, &Arc::default(), false);
        self.say_plainly(layer, "Preparing");
    }

    fn pushing(&self, layer: &str, total: u64, sent: &Arc<AtomicU64>) {
        let look = "{msg}: Pushing {bar:30} {decimal_bytes}/{decimal_total_bytes}";
        self.watch(layer, look, Some(total), sent, false);
    }

    fn pushed(&self, layer: &str) {
        self.say(layer, "Pushed");
    }

    fn exists(&self, layer: &str) {
        self.say(layer, "Layer already exists");
    }

    fn mounted(&self, layer: &str, from: &str) {
        self.say(layer, &format!("Mounted from {from}"));
    }
}

/// Layers that are read rather than loaded. Without a terminal nothing is said of those.
impl check::Progress for Layers {
    fn started(&self, layer: &str, total: u64, read: &Arc<AtomicU64>) {
        if self.bars.is_some() {
            Progress::started(self, layer, Some(total), read);
        }
    }

    fn finished(&self, layer: &str) {
        if let Some(bar) = self.take(layer) {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

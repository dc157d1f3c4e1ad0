//! How a load goes on: a bar per layer on a terminal, plain lines elsewhere. On standard error.
#![allow(clippy::print_stderr)]

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::format::size;
use crate::engine::check;
use crate::engine::load::Progress;

type Watched = (ProgressBar, Arc<AtomicU64>);

/// Bars or lines.
pub(super) struct Layers {
    bars: Option<MultiProgress>,
    watched: Arc<Mutex<HashMap<String, Watched>>>,
    done: Arc<AtomicBool>,
}

impl Layers {
    /// `quiet` shows nothing.
    pub(super) fn new(quiet: bool) -> Option<Self> {
        if quiet {
            return None;
        }
        let layers = Self {
            bars: std::io::stderr().is_terminal().then(MultiProgress::new),
            watched: Arc::default(),
            done: Arc::default(),
        };
        if layers.bars.is_some() {
            let (watched, done) = (Arc::clone(&layers.watched), Arc::clone(&layers.done));
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for (bar, read) in watched.lock().unwrap_or_else(PoisonError::into_inner).values() {
                        bar.set_position(read.load(Ordering::Relaxed));
                    }
                    std::thread::sleep(Duration::from_millis(80));
                }
            });
        }
        Some(layers)
    }

    fn say(&self, layer: &str, what: &str) {
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(format!("{layer}: {what}"));
            }
            None => eprintln!("{layer}: {what}"),
        }
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

impl Progress for Layers {
    fn started(&self, layer: &str, total: Option<u64>, read: &Arc<AtomicU64>) {
        let Some(bars) = &self.bars else {
            let of = total.map(|total| format!(" {}", size(total)));
            return self.say(layer, &format!("Loading{}", of.unwrap_or_default()));
        };
        let bar = match total {
            Some(total) => {
                ProgressBar::new(total).with_style(style("{msg}: {bar:40} {decimal_bytes}/{decimal_total_bytes}"))
            }
            None => ProgressBar::new_spinner().with_style(style("{msg}: {decimal_bytes} {spinner}")),
        };
        let bar = bars.add(bar.with_message(layer.to_string()));
        self.watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(layer.to_string(), (bar, Arc::clone(read)));
    }

    fn exists(&self, layer: &str) {
        self.say(layer, "Already exists");
    }

    fn finished(&self, layer: &str) {
        if let Some((bar, _)) = self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(layer) {
            bar.finish_and_clear();
        }
        self.say(layer, "Load complete");
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
        if let Some((bar, _)) = self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(layer) {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

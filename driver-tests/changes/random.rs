//! Random edits. A failure prints its seed; CHANGES_SEED runs it alone, or another range (`20..500`).

use std::ops::Range;

use reflinkd::backend::Access;
use reflinkd::backend::changes::FeedMethod;

use crate::edits::{Editor, Edits, FILLING, STEPS, seeds};
use crate::fixture::Fixture;
use crate::support::QuotaSetup;

const ROUNDS: usize = 6;

/// Every other round the container goes on as a fork of what it was, where `forks`.
fn compare(fixture: &Fixture, seeds: Range<u64>, edits: Edits, forks: bool, method: FeedMethod) {
    for seed in seeds {
        let (layer, mut container) = fixture.pair(|root| {
            let mut editor = Editor::new(root, seed, Edits::Everywhere);
            (0..FILLING).for_each(|_| editor.step());
        });
        let mut editor = Editor::new(&container.root(), seed + 1_000_000, edits);
        for round in 0..ROUNDS {
            (0..STEPS).for_each(|_| editor.step());
            let about = || format!("CHANGES_SEED={seed} round {round}\n{}\n", editor.log.join("\n"));
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let (_, found_by) = fixture.agreed(&format!("seed {seed}"), &layer, &container);
                assert_eq!(found_by, method, "how it was found");
            }));
            if let Err(panic) = checked {
                // Beside the panic's own message, which says what differs.
                #[allow(clippy::print_stderr)]
                {
                    eprintln!("{}", about());
                }
                std::panic::resume_unwind(panic);
            }
            if forks && round % 2 == 0 {
                let fork = fixture.forked(&container, Access::Writable);
                fixture.backend.destroy(&container).expect("destroy");
                fixture.agreed(&format!("seed {seed}, a fork after round {round}"), &layer, &fork);
                editor.goes_on(&fork.root());
                container = fork;
            }
        }
        fixture.backend.destroy(&container).expect("destroy");
        fixture.backend.destroy(&layer).expect("destroy");
    }
}

#[test]
fn send_finds_what_walking_finds() {
    compare(&Fixture::btrfs(QuotaSetup::None), seeds(20), Edits::WithSubvolumes, false, FeedMethod::Send);
}

#[test]
fn manifests_find_what_walking_finds_on_xfs() {
    compare(&Fixture::xfs(), seeds(20), Edits::Everywhere, true, FeedMethod::Manifest);
}

#[test]
fn manifests_find_what_walking_finds_on_btrfs() {
    compare(&Fixture::reflink_on_btrfs(), seeds(10), Edits::WithSubvolumes, true, FeedMethod::Manifest);
}

#[test]
fn walking_finds_what_the_pictures_show() {
    compare(&Fixture::memory(), seeds(10), Edits::Everywhere, true, FeedMethod::Walk);
}

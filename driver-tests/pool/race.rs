//! Many processes that attach one pool at once.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use reflinkd::engine::pool::{Creation, Pool, PoolFs};

use crate::fixture::{Fixture, names};
use crate::support::{GIB, Process, wait_until};

/// Where the race's children find the pool.
const RACE_ROOT: &str = "REFLINKD_TEST_RACE_ROOT";
const RACE_ROUND: &str = "REFLINKD_TEST_RACE_ROUND";
const RACERS: usize = 8;

/// One of eight processes, which the test below starts by itself. It attaches when `go` is there, leaves its mark in
/// ROOT, and succeeds when it sees there the marks of all: they could be on different filesystems only if the file had
/// several loop devices.
fn race(root: &Path) {
    let round = std::env::var(RACE_ROUND).expect("started by the race");
    let end = Instant::now() + Duration::from_secs(60);
    fs::write(root.with_extension(format!("ready-{}", std::process::id())), "").expect("say that it is ready");
    while !root.with_extension("go").exists() {
        assert!(Instant::now() < end, "nobody said go");
        std::hint::spin_loop();
    }
    Pool::at(root).attach().expect("attach");
    let marks = root.join(round);
    fs::create_dir_all(&marks).expect("the directory of marks");
    fs::write(marks.join(std::process::id().to_string()), "").expect("leave a mark");
    while fs::read_dir(&marks).expect("list the marks").count() < RACERS {
        assert!(Instant::now() < end, "the others are on another filesystem");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn eight_processes_get_one_loop_device(kind: PoolFs) {
    if let Some(root) = std::env::var_os(RACE_ROOT) {
        return race(Path::new(&root));
    }
    let fixture = Fixture::alone(kind);
    assert_eq!(fixture.pool.create(kind, GIB).expect("create"), Creation::Created);
    let me = std::env::current_exe().expect("this program");
    let this_test = format!("{}::eight_processes_get_one_loop_device", kind.name());
    for round in 0..5 {
        let mut racers: Vec<Process> = (0..RACERS)
            .map(|racer| {
                // The first one mounts where nobody else sees it.
                let mut command = if racer == 0 {
                    let mut unshare = Command::new("unshare");
                    unshare.args(["--mount", "--propagation", "private"]).arg(&me);
                    unshare
                } else {
                    Command::new(&me)
                };
                command.args(["--exact", &this_test, "--quiet"]);
                command.env(RACE_ROOT, fixture.root()).env(RACE_ROUND, format!("round-{round}"));
                command.stdout(std::process::Stdio::null());
                Process::spawn(&mut command)
            })
            .collect();
        wait_until("all racers are ready", || {
            let ready = |name: &str| name.starts_with("root.ready-");
            names(fixture.directory()).iter().filter(|name| ready(name)).count() == RACERS
        });
        fs::write(fixture.root().with_extension("go"), "").expect("go");
        for racer in &mut racers {
            assert!(racer.child().wait().expect("wait").success(), "a racer failed in round {round}");
        }
        assert_eq!(fixture.devices().len(), 1);
        assert_eq!(names(&fixture.root().join(format!("round-{round}"))).len(), RACERS);
        fixture.pool.detach().expect("detach");
        fixture.check();
        for name in names(fixture.directory()) {
            if name.starts_with("root.ready-") || name == "root.go" {
                fs::remove_file(fixture.directory().join(name)).expect("tidy");
            }
        }
    }
}

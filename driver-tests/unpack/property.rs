//! Random layers on Btrfs, each compared with the model. A failure prints its seed; UNPACK_SEED runs it alone.

use reflinkd::layer::Limits;

use super::fixture::Btrfs;
use super::generate::{layer, tar};
use super::model::Model;
use super::random::Random;
use super::restored::unpack;
use super::tree::{assert_same, read};

const CASES: u64 = 600;

#[test]
fn layers_do_what_the_model_says() {
    let btrfs = Btrfs::new();
    let seeds = match std::env::var("UNPACK_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..CASES).collect(),
    };
    for seed in seeds {
        let root = btrfs.path().join(seed.to_string());
        std::fs::create_dir(&root).expect("root");
        let mut random = Random(seed);
        let mut model = Model::new();
        std::fs::File::open(&root)
            .and_then(|f| f.set_modified(std::time::UNIX_EPOCH))
            .expect("the model's root has mtime 0");
        std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("and this mode");
        for number in 0..1 + random.below(5) {
            let ops = layer(&mut random, &mut model);
            let tar = tar(&mut random, &ops);
            let about = || format!("UNPACK_SEED={seed} layer {number}: {ops:#?}");
            unpack(&mut &tar[..], &root, &Limits::default(), &|| false)
                .unwrap_or_else(|e| panic!("{}\n{e}", about()));
            assert_same(&read(&root), &model.tree(), about);
        }
        std::fs::remove_dir_all(&root).expect("clean up");
    }
}

use serde_json::json;

use super::{Output, format};
use crate::Result;
use crate::backend::Guarantee;
use crate::cli::output::Format;
use crate::engine::Engine;

/// Show what the store is, where it lies and how it fares
#[derive(clap::Args, Debug)]
pub struct Info {
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Info {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let info = engine.info()?;
        if self.format == Format::Json {
            return out.json(&json!([{
                "version": env!("CARGO_PKG_VERSION"),
                "root": engine.root(),
                "store": info.identity.uuid,
                "schema": info.identity.schema,
                "backend": info.identity.backend,
                "filesystem": info.filesystem,
                "images": info.images,
                "layers": info.layers,
                "containers": info.containers,
                "quotas": info.quota.mode,
                "limits": limits(info.quota.guarantee),
                "used": info.space.used,
                "available": info.space.available,
                "total": info.space.total,
                "read_only": info.read_only,
                "pool": info.pool.as_ref().map(|pool| json!({
                    "file": pool.file,
                    "occupied": pool.occupied,
                    "host_free": pool.host_free,
                })),
            }]));
        }
        let mut line = |name: &str, value: String| out.line(format_args!("{name:<12} {value}"));
        line("Version", env!("CARGO_PKG_VERSION").into())?;
        line("Root", engine.root().display().to_string())?;
        line(
            "Store",
            format!("{} (schema {}, {})", info.identity.uuid, info.identity.schema, info.identity.backend),
        )?;
        line("Images", format!("{} ({} layers)", info.images, info.layers))?;
        line("Containers", info.containers.to_string())?;
        line("Quotas", format!("{} ({})", info.quota.mode, limits(info.quota.guarantee)))?;
        let space = info.space;
        let (used, total) = (format::size(space.used), format::size(space.total));
        line("Filesystem", format!("{}, {used} used of {total}", info.filesystem))?;
        if let Some(pool) = &info.pool {
            line("Pool", format!("{}, {} on the host", pool.file.display(), format::size(pool.occupied)))?;
            line("Host", format!("{} free", format::size(pool.host_free)))?;
        }
        if info.read_only {
            out.warn(format_args!(
                "{} is read-only: its filesystem met an error. Make room on the host, then unmount it and run any \
                 reflinkd command; what was committed is there. See dmesg for the cause.",
                engine.root().display()
            ));
        }
        Ok(())
    }
}

pub(super) fn limits(guarantee: Option<Guarantee>) -> &'static str {
    match guarantee {
        Some(Guarantee::Holds) => "limits hold",
        Some(Guarantee::CountsTheClone) => {
            "limits hold, but deleting files of the image makes room, and overwriting them is free"
        }
        Some(Guarantee::EscapedByNestedSubvolumes) => "limits hold, but not for subvolumes made inside a container",
        None => "limits are refused",
    }
}

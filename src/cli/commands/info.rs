use serde_json::json;

use super::{Output, format};
use crate::Result;
use crate::backend::Guarantee;
use crate::cli::output::Format;
use crate::engine::Engine;
use crate::engine::info::PoolInfo;

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
                    "may_grow": pool.may_grow,
                    "host_free": pool.host_free,
                    "host_reserve": pool.host_reserve,
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
            let (free, may_grow) = (format::size(pool.host_free), format::size(pool.may_grow));
            line("Host", format!("{free} free; the pool may grow by {may_grow}"))?;
        }
        if let Some(pool) = &info.pool {
            warn_of_host(pool, out);
            if pool.is_overcommitted() {
                out.warn(format_args!(
                    "containers may write more than the host of {} has room for, and nothing holds them back but a --size-limit",
                    pool.file.display()
                ));
            }
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

/// Say that nothing can be added, and why.
pub(super) fn warn_of_host(pool: &PoolInfo, out: &mut Output) {
    if pool.is_host_short() {
        out.warn(format_args!(
            "only {} are free on the host of {}, and {} are kept in reserve: nothing is added to the store until there is room. \
             Make some there, or remove containers and images and run: reflinkd gc",
            format::size(pool.host_free),
            pool.file.display(),
            format::size(pool.host_reserve)
        ));
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

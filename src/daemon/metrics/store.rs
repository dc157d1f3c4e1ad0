//! What there is, asked at each scrape.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::engine::Engine;
use crate::engine::census::Census;

#[derive(Debug)]
pub(super) struct Collector {
    pub(super) engine: Arc<Engine>,
}

impl collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let build = [("version", env!("CARGO_PKG_VERSION"))];
        labelled(&mut encoder, "build_info", "The version that runs, as a label", &[(&build[..], 1)])?;
        let census = self.engine.census();
        let failed = i64::from(census.is_err());
        gauge(
            &mut encoder,
            "store_error",
            "Whether the store couldn't be asked, so that the rest is missing",
            failed,
        )?;
        match census {
            Ok(census) => encode(&mut encoder, &census),
            Err(e) => {
                tracing::warn!("cannot count what there is: {e}");
                Ok(())
            }
        }
    }
}

fn encode(encoder: &mut DescriptorEncoder<'_>, census: &Census) -> fmt::Result {
    let info = &census.info;
    let owned = census.keyed.iter().map(|((owner, stage), n)| ([("owner", owner.as_str()), ("stage", *stage)], *n));
    let owned: Vec<_> = owned.collect();
    let keyed: Vec<_> = owned.iter().map(|(labels, n)| (&labels[..], number(*n as u64))).collect();
    labelled(encoder, "trees", "Trees of clients with keys, by client and stage", &keyed)?;
    for (name, help, count) in [
        ("images", "Images", info.images),
        ("layers", "Layers of images", info.layers),
        ("containers", "Containers with names", info.containers),
        ("snapshots", "Snapshots of containers", census.snapshots),
        ("spares", "Clones made ahead", census.spares),
        ("pending_deletes", "Removed trees that the filesystem hasn't cleaned up yet", census.pending.0),
    ] {
        gauge(encoder, name, help, number(count as u64))?;
    }
    for (name, help, bytes) in [
        ("pending_delete_bytes", "What removed trees still hold", census.pending.1),
        ("filesystem_size_bytes", "Size of the filesystem that the store lies on", info.space.total),
        ("filesystem_used_bytes", "What is used of it", info.space.used),
        ("filesystem_available_bytes", "What can still be written to it", info.space.available),
    ] {
        gauge(encoder, name, help, number(bytes))?;
    }
    let mode = info.quota.mode.to_string();
    let mode = [("mode", mode.as_str())];
    labelled(encoder, "quota_mode", "How the filesystem counts what is whose, as a label", &[(&mode[..], 1)])?;
    gauge(encoder, "read_only", "Whether the filesystem takes no writes", i64::from(info.read_only))?;
    if let Some(pool) = &info.pool {
        gauge(encoder, "pool_occupied_bytes", "What the pool's file takes on its host", number(pool.occupied))?;
        gauge(encoder, "pool_growth_bytes", "What it can come to take besides", number(pool.may_grow))?;
        gauge(encoder, "pool_host_free_bytes", "What is free on the pool's host", number(pool.host_free))?;
        let help = "Below this much free on the host nothing is added to the store";
        gauge(encoder, "pool_host_reserve_bytes", help, number(pool.host_reserve))?;
    }
    Ok(())
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, &format!("{help}."), None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

/// One gauge for each set of labels.
fn labelled(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: &[(&[(&str, &str)], i64)],
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, &format!("{help}."), None, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(*value).encode(metric.encode_family(labels)?)?;
    }
    Ok(())
}

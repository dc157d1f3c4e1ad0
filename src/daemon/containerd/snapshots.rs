//! `snapshots.v1`: containerd's ten calls about snapshots.
//!
//! Which of several snapshotters is meant (`snapshotter` in each request) doesn't matter: the socket says it.

use std::collections::{BTreeMap, HashMap};
use std::vec::IntoIter;

use prost::Message;
use prost_types::FieldMask;
use tonic::{Request, Response, Status};

use super::api::services::snapshots::v1::snapshots_server::Snapshots;
use super::api::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as WireKind, ListSnapshotsRequest, ListSnapshotsResponse,
    MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use super::filter::Filters;
use super::{Door, mounts, timestamp};
use crate::engine::containerd::{LabelChange, Labels, SnapshotInfo, SnapshotKind};
use crate::{Error, Kind, Result};

/// What a message of a list has at most, so that containerd takes it: snapshots, and bytes before the last of them.
const MOST_LISTED: (usize, usize) = (100, 1 << 20);

#[tonic::async_trait]
impl Snapshots for Door {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let PrepareSnapshotRequest { key, parent, labels: given, .. } = request.into_inner();
        let shown = self.run("Prepare", move |snapshots| {
            mounts(snapshots.prepare(named(&key)?, optional(&parent), labels(given))?)
        });
        Ok(Response::new(PrepareSnapshotResponse { mounts: shown.await? }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Result<Response<ViewSnapshotResponse>, Status> {
        let ViewSnapshotRequest { key, parent, labels: given, .. } = request.into_inner();
        let shown = self
            .run("View", move |snapshots| mounts(snapshots.view(named(&key)?, optional(&parent), labels(given))?));
        Ok(Response::new(ViewSnapshotResponse { mounts: shown.await? }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let key = request.into_inner().key;
        let shown = self.run("Mounts", move |snapshots| mounts(snapshots.mounts(named(&key)?)?));
        Ok(Response::new(MountsResponse { mounts: shown.await? }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let CommitSnapshotRequest { name, key, labels: given, parent, .. } = request.into_inner();
        let committed = self.run("Commit", move |snapshots| {
            snapshots.commit(named(&name)?, named(&key)?, optional(&parent), labels(given))
        });
        committed.await.map(Response::new)
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        self.run("Remove", move |snapshots| snapshots.remove(named(&key)?)).await.map(Response::new)
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Result<Response<StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        let info = self.run("Stat", move |snapshots| snapshots.stat(named(&key)?)).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(wire(info)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let info = self.run("Update", move |snapshots| {
            let info = info.unwrap_or_default();
            snapshots.update(named(&info.name)?, label_change(info.labels, update_mask)?)
        });
        Ok(Response::new(UpdateSnapshotResponse { info: Some(wire(info.await?)) }))
    }

    type ListStream = tokio_stream::Iter<IntoIter<Result<ListSnapshotsResponse, Status>>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        let listed = self.run("List", move |snapshots| {
            let filters = Filters::parse(&filters)?;
            let listed = snapshots.list()?.into_iter().filter(|info| filters.let_through(info));
            Ok(in_messages(listed.map(wire)))
        });
        let messages: Vec<_> = listed.await?.into_iter().map(|info| Ok(ListSnapshotsResponse { info })).collect();
        Ok(Response::new(tokio_stream::iter(messages)))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let key = request.into_inner().key;
        let usage = self.run("Usage", move |snapshots| snapshots.usage(named(&key)?)).await?;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse { size: number(usage.size), inodes: number(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        // The method's own lifetime is one, and not any.
        #[allow(clippy::redundant_closure_for_method_calls)]
        self.run("Cleanup", |snapshots| snapshots.clean_up()).await.map(Response::new)
    }
}

fn named(key: &str) -> Result<&str> {
    if key.is_empty() { Err(Error::new(Kind::Invalid, "the snapshot has no name")) } else { Ok(key) }
}

/// Nothing is none.
fn optional(name: &str) -> Option<&str> {
    Some(name).filter(|name| !name.is_empty())
}

/// Labels, of which empty ones aren't there.
fn labels(given: HashMap<String, String>) -> Labels {
    given.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// What of the labels is to change: all, or those that the mask names. Nothing else can.
fn label_change(given: HashMap<String, String>, mask: Option<FieldMask>) -> Result<LabelChange> {
    let given = labels(given);
    let paths = mask.unwrap_or_default().paths;
    let mut some = BTreeMap::new();
    let mut all = paths.is_empty();
    for path in &paths {
        match path.strip_prefix("labels.") {
            Some(key) => drop(some.insert(key.to_string(), given.get(key).cloned())),
            None if path == "labels" => all = true,
            None => {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("{path:?} of a snapshot can't be changed, its labels can"),
                ));
            }
        }
    }
    Ok(if all { LabelChange::All(given) } else { LabelChange::Some(some) })
}

fn wire(info: SnapshotInfo) -> Info {
    let kind = match info.kind {
        SnapshotKind::View => WireKind::View,
        SnapshotKind::Active => WireKind::Active,
        SnapshotKind::Committed => WireKind::Committed,
    };
    Info {
        name: info.name,
        parent: info.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(timestamp(info.created)),
        updated_at: Some(timestamp(info.updated)),
        labels: info.labels.into_iter().collect(),
    }
}

/// As many to a message as it may have.
fn in_messages(listed: impl Iterator<Item = Info>) -> Vec<Vec<Info>> {
    let mut messages: Vec<Vec<Info>> = Vec::new();
    let mut bytes = 0;
    for info in listed {
        match messages.last_mut() {
            Some(last) if last.len() < MOST_LISTED.0 && bytes < MOST_LISTED.1 => {
                bytes += info.encoded_len();
                last.push(info);
            }
            _ => {
                bytes = info.encoded_len();
                messages.push(vec![info]);
            }
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
    }

    fn change(given: &[(&str, &str)], paths: &[&str]) -> Result<LabelChange> {
        let mask = FieldMask { paths: paths.iter().map(ToString::to_string).collect() };
        label_change(pairs(given), Some(mask))
    }

    #[test]
    fn a_mask_says_which_labels_change() {
        let given = [("a", "1"), ("b.c/d", "2"), ("gone", "")];
        let all = |change| matches!(change, LabelChange::All(labels) if labels.len() == 2 && labels["b.c/d"] == "2");
        assert!(all(label_change(pairs(&given), None).expect("no mask is all")));
        assert!(all(change(&given, &[]).expect("an empty one too")));
        assert!(all(change(&given, &["labels"]).expect("labels")));
        assert!(all(change(&given, &["labels.a", "labels"]).expect("both")));
        let LabelChange::Some(some) = change(&given, &["labels.b.c/d", "labels.gone", "labels.none"]).expect("some")
        else {
            panic!("not all of them");
        };
        let expected = [("b.c/d", Some("2")), ("gone", None), ("none", None)];
        assert_eq!(some, expected.map(|(key, value)| (key.to_string(), value.map(String::from))).into());
        for path in ["name", "parent", "kind", "created_at", "label", "Labels", "labelsx", ""] {
            let error = change(&given, &["labels.a", path]).expect_err(path);
            assert_eq!(error.kind(), Kind::Invalid);
        }
    }

    #[test]
    fn lists_come_in_messages_that_are_taken() {
        let sizes = |infos: Vec<Info>| in_messages(infos.into_iter()).iter().map(Vec::len).collect::<Vec<_>>();
        assert!(sizes(Vec::new()).is_empty());
        assert_eq!(sizes(vec![Info::default(); 250]), [100, 100, 50]);
        let large = Info { name: "n".repeat(600 << 10), ..Info::default() };
        assert_eq!(sizes(vec![large; 5]), [2, 2, 1]);
    }
}

//! Quota groups, limits and removed trees against the records.

use std::collections::BTreeSet;

use super::records::of;
use super::{Check, Code, Finding, Remedy};
use crate::Result;
use crate::backend::GroupId;
use crate::engine::keyed::limit_at_first;
use crate::store::survey::IndexLook;
use crate::store::{Record, Stage, State};

impl Check {
    pub(super) fn find_charges(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for place in self.survey.places.iter().filter(|place| !place.busy && place.state() == Some(State::Ready)) {
            if let Some(record) = place.whole().filter(|record| record.has_tree() && !record.replacing) {
                // What is wrong with the tree itself is said elsewhere.
                findings.extend(self.charge_of(record).unwrap_or_default().map(|found| found.at(&place.path)));
            }
        }
        findings.extend(self.find_leftovers()?);
        Ok(findings)
    }

    fn charge_of(&self, record: &Record) -> Result<Option<Finding>> {
        let Some(group) = record.group else { return Ok(None) };
        let Some(charge) = self.engine.backend.charge(&self.engine.tree(record))? else { return Ok(None) };
        match charge.group {
            // It was made while there were no quotas.
            None => Ok(None),
            Some(GroupId(other)) if other != group => {
                let why = format!("it is charged to group {other}, and its record says {group}");
                let left = Remedy::Left("its limit doesn't hold: make it anew (clone it, then remove it)");
                Ok(Some(of(record, Code::ChargeDiffers, why, left)))
            }
            Some(_) => {
                let limit = limit_of(record).filter(|_| self.engine.backend.quotas().is_some());
                Ok(match (limit, charge.limit) {
                    (Some(limit), None) => {
                        let why = format!("it may write {limit} bytes by its record, and its group has no limit");
                        Some(of(record, Code::LimitMissing, why, Remedy::Do("set it")))
                    }
                    _ => None,
                })
            }
        }
    }

    fn find_leftovers(&self) -> Result<Vec<Finding>> {
        let (survey, backend) = (&self.survey, &self.engine.backend);
        // Where a record is lost nobody knows its group.
        let lost =
            survey.places.iter().any(|place| place.whole().is_none() && survey.index.row(place.uuid).is_none());
        if lost {
            return Ok(Vec::new());
        }
        let records = survey.places.iter().filter_map(|place| place.whole());
        let rows = survey.index.rows().iter().map(|(record, _)| record);
        let live: BTreeSet<_> = records.chain(rows).flat_map(Record::groups).map(GroupId).collect();
        let next = match &survey.index {
            IndexLook::Current { next_group, .. } => *next_group,
            _ => None,
        };
        let cleaning = backend.is_cleaning()?;
        let drop = Remedy::Do("drop it");
        let mut findings = Vec::new();
        for leftover in backend.leftovers(&live)? {
            if leftover.kind != "group" {
                let found =
                    Finding::new(Code::TrashLeft, leftover.name, "it is removed", Remedy::Do("take it apart"));
                findings.push(found.leftover());
                continue;
            }
            let given = leftover.name.parse::<u32>().ok().is_none_or(|number| next.is_none_or(|next| number < next));
            findings.push(if leftover.charged > 0 && !cleaning {
                let why = format!("{} bytes that others still hold are charged to it", leftover.charged);
                Finding::new(Code::ChargeDead, leftover.name, why, drop).leftover()
            } else if given {
                Finding::new(Code::GroupStale, leftover.name, "its tree was removed", drop).leftover()
            } else {
                Finding::new(Code::GroupStale, leftover.name, "no tree was ever given it", drop)
            });
        }
        Ok(findings)
    }
}

/// The limit that a tree's group should have.
pub(super) fn limit_of(record: &Record) -> Option<u64> {
    let active = || record.keyed().filter(|keyed| keyed.stage == Stage::Active);
    match record.container() {
        Some(container) => container.own_limit(),
        None => active().and_then(|keyed| limit_at_first(keyed, &record.owner)),
    }
}

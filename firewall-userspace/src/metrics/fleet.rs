//! What Prometheus sees of the fleet that a node belongs to.

use super::Family;
use crate::api::fleet::FleetStatus;
use std::collections::BTreeMap;

/// States of documents, so that each has a series from the start.
const STATES: [&str; 5] = ["in-force", "coming", "incomplete", "rejected", "withheld"];

pub(super) fn families(fleet: &FleetStatus) -> Vec<Family> {
    let mut out = Vec::new();
    let mut gauge = |name: &str, help: &str, value: f64| {
        let mut family = Family::gauge(name, help);
        family.add(&[], value);
        out.push(family);
    };
    let flag = |value: bool| f64::from(u8::from(value));
    gauge(
        "ravelin_fleet_connected",
        "1 while the store of the fleet is in reach.",
        flag(fleet.connected),
    );
    gauge(
        "ravelin_fleet_registered",
        "1 while this node is registered.",
        flag(fleet.registered),
    );
    gauge(
        "ravelin_fleet_last_contact_timestamp_seconds",
        "When the store was heard of last; 0 for never.",
        fleet.last_contact as f64,
    );
    gauge(
        "ravelin_fleet_revision",
        "Revision of the store that this node knows.",
        fleet.revision as f64,
    );
    gauge(
        "ravelin_fleet_nodes",
        "Nodes that groups of this node may hold.",
        fleet.nodes as f64,
    );
    let mut counts: BTreeMap<&str, usize> = STATES.into_iter().map(|state| (state, 0)).collect();
    for document in &fleet.documents {
        *counts.entry(&document.state).or_default() += 1;
    }
    let mut documents = Family::gauge("ravelin_fleet_documents", "Documents for this node, by state.");
    for (state, count) in counts {
        documents.add(&[("state", state)], count as f64);
    }
    let mut versions = Family::gauge(
        "ravelin_fleet_document_version",
        "Version of a document that is in force; 0 for none.",
    );
    // Names of what was never in force are whatever somebody wrote into the store.
    for document in fleet
        .documents
        .iter()
        .filter(|document| document.version.is_some())
    {
        let labels = [("document", &*document.name)];
        versions.add(&labels, document.version.unwrap_or(0) as f64);
    }
    let mut refused = Family::counter(
        "ravelin_fleet_refused_total",
        "Values of the store that were refused, by reason.",
    );
    for (reason, count) in &fleet.refused {
        refused.add(&[("reason", reason)], *count as f64);
    }
    out.extend([documents, versions, refused]);
    out
}

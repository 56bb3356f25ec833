//! What people read: the records of [`crate::api::types`] as text.
//!
//! Each file renders one kind of record and is pure: records and a [`Style`] in, text out, so tables are tested
//! against golden output. JSON is never made here: it is the record itself, as the agent sent it. Times are UTC.

mod anomalies;
mod bans;
mod check;
mod counters;
mod diff;
mod doctor;
mod events;
mod explain;
mod fleet;
mod fleet_status;
mod flows;
mod human;
mod limit_states;
mod limits;
mod services;
mod status;
mod style;
mod table;

pub use anomalies::{anomalies, anomaly_sentence};
pub use bans::{ban_sentence, banned, bans, unbanned};
pub use check::{CheckEgress, CheckFinding, CheckReport, CheckService, check};
pub use counters::{Rates, counters};
pub use diff::{applied, diff, ends};
pub use doctor::doctor;
pub use events::{event, event_header, route};
pub use explain::explanation;
pub use fleet::{
    FleetBanRow, ListRow, Lists, NodeRow, PolicyRow, Published, Signed, fleet_bans, fleet_lists, nodes,
    policies, published,
};
pub use flows::flows;
pub use human::{bytes, duration, number, utc};
pub use limit_states::limit_states;
pub use limits::limits;
pub use services::{rules, services};
pub use status::status;
pub use style::Style;

//! Egress rules by port: which of them meet where. A row of the verdict table stands for one set of rules that hold the
//! same ports, so a packet finds all that is said of its port in one place, however many rules say it.

use super::super::model::Policy;
use firewall_common::image::PortKey;
use std::collections::{BTreeSet, HashMap};

/// The rows of what leaves, in the order of their first port.
pub struct EgressRows {
    /// Egress rules of each row, ascending. Row 0: those without ports, which hold every port.
    pub sets: Vec<Vec<u32>>,
    /// Disjoint ranges of ports that rules with ports hold, ascending, each with its row.
    pub ports: Vec<((PortKey, PortKey), usize)>,
}

impl EgressRows {
    pub fn new(policy: &Policy) -> EgressRows {
        let rules = || (0_u32..).zip(&policy.egress);
        let everywhere = rules().filter(|(_, rule)| rule.ports.is_empty());
        let mut present: BTreeSet<u32> = everywhere.map(|(number, _)| number).collect();
        let count = present.len();
        let first: Vec<u32> = present.iter().copied().collect();
        let mut rows = EgressRows {
            sets: vec![first.clone()],
            ports: Vec::new(),
        };
        let mut numbers = HashMap::from([(first, 0)]);

        // Each range opens at its first port and closes behind its last. Ranges of one rule are disjoint, and at one
        // port closing comes first.
        let mut events: Vec<(u32, bool, u32)> = Vec::new();
        for (number, rule) in rules() {
            for (first, last) in &rule.ports {
                events.push((first.0, true, number));
                events.push((last.0 + 1, false, number));
            }
        }
        events.sort_unstable();
        let mut from = 0;
        for (at, opens, number) in events {
            if at > from && present.len() > count {
                let members: Vec<u32> = present.iter().copied().collect();
                let next = rows.sets.len();
                let row = *numbers.entry(members.clone()).or_insert(next);
                if row == next {
                    rows.sets.push(members);
                }
                rows.ports.push(((PortKey(from), PortKey(at - 1)), row));
            }
            from = at;
            if opens {
                present.insert(number);
            } else {
                present.remove(&number);
            }
        }
        rows
    }
}

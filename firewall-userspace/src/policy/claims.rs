//! Which service claims which port: each may have one owner. Egress rules share ports, but none names one twice.

use super::diagnostic::Findings;
use super::ports;
use super::written::Word;
use firewall_common::image::PortKey;
use std::collections::HashSet;

type Range = (PortKey, PortKey);

/// A range that a text of a service claims.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    pub range: Range,
    pub service: usize,
    pub word: &'a Word,
}

/// Sorts the claims. Two services at one port are an error that names both places, one service twice a warning. `labels`
/// call each by its name: `service "web"`.
pub fn check(claims: &mut [Claim<'_>], labels: &[String], findings: &mut Findings<'_>) {
    claims.sort_by_key(|claim| (claim.range, claim.word.span.start));
    // The claims that reach furthest so far: of any service, and of another service than that.
    let (mut furthest, mut other): (Option<Claim>, Option<Claim>) = (None, None);
    let mut said = HashSet::new();
    for &claim in claims.iter() {
        for earlier in [furthest, other].into_iter().flatten() {
            if earlier.range.1 < claim.range.0 {
                continue;
            }
            let (first, second) = match earlier.word.span.start <= claim.word.span.start {
                true => (earlier, claim),
                false => (claim, earlier),
            };
            if said.insert((first.word.span.start, second.word.span.start)) {
                let shared = (claim.range.0, earlier.range.1.min(claim.range.1));
                conflict(first, second, shared, labels, findings);
            }
        }
        if furthest.is_none_or(|furthest| furthest.range.1 < claim.range.1) {
            if furthest.is_some_and(|furthest| furthest.service != claim.service) {
                other = furthest;
            }
            furthest = Some(claim);
        } else if furthest.is_some_and(|furthest| furthest.service != claim.service)
            && other.is_none_or(|other| other.range.1 < claim.range.1)
        {
            other = Some(claim);
        }
    }
}

fn conflict(first: Claim, second: Claim, shared: Range, labels: &[String], findings: &mut Findings<'_>) {
    let shared = ports::show(&[shared]).concat();
    let place = findings.text.place(first.word.span.start);
    let name = &labels[second.service];
    if first.service == second.service {
        let message = format!(
            "{name} names {shared} twice: \"{}\" at {place} holds it",
            first.word.text
        );
        findings.warn(&second.word.span, message, None);
    } else {
        let owner = &labels[first.service];
        let message = format!("{name} claims {shared}, which {owner} has ({place})");
        let hint = "a port belongs to one service: take it out of one of the two".to_string();
        findings.error(&second.word.span, message, Some(hint));
    }
}

/// The ranges of each service, sorted and disjoint. Ranges that touch stay apart: neighbours in number may be
/// of different protocols.
pub fn merge(sorted: &[Claim<'_>], services: usize) -> Vec<Vec<Range>> {
    let mut merged: Vec<Vec<Range>> = vec![Vec::new(); services];
    for claim in sorted {
        let ranges = &mut merged[claim.service];
        match ranges.last_mut() {
            Some(last) if claim.range.0 <= last.1 => last.1 = last.1.max(claim.range.1),
            _ => ranges.push(claim.range),
        }
    }
    merged
}

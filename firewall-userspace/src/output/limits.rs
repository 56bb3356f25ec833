//! What services bear, a limit a row.

use super::Style;
use super::human::number;
use super::table::{left, list, table, words};
use crate::api::types::{LimitRow, LimitValue};
use crate::policy::limits::{Kind, SourceLengths};
use comfy_table::Cell;

/// The limits of services, each with its name. Empty if there is none.
pub fn limits<'r>(services: impl IntoIterator<Item = (&'r str, &'r [LimitRow])>, style: &Style) -> String {
    let mut rows = Vec::new();
    for (name, limits) in services {
        let mut name = name;
        for limit in limits {
            let mut whom = whom(limit, limits.len() > 1);
            let mut on_excess = match limit.challenged {
                true => format!("{}, challenged now", limit.on_excess),
                false => limit.on_excess.clone(),
            };
            let mut row = |what: &str, source: String, total: String| {
                rows.push(vec![
                    Cell::new(std::mem::take(&mut name)),
                    Cell::new(std::mem::take(&mut whom)),
                    Cell::new(what),
                    Cell::new(source),
                    Cell::new(total),
                    Cell::new(std::mem::take(&mut on_excess)),
                ]);
            };
            for value in &limit.limits {
                let (source, mut total) = cells(value);
                if let Some(now) = limit
                    .connections
                    .filter(|_| value.what == Kind::Connections.key())
                {
                    total = format!("{total}, {} now", number(now));
                }
                row(what(value), source, total);
            }
            if limit.limits.is_empty() {
                row("nothing", "-".to_owned(), "-".to_owned());
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let columns = [
        left("LIMITED"),
        words("FOR"),
        left("WHAT"),
        left("PER SOURCE"),
        left("IN ALL"),
        left("ON EXCESS"),
    ];
    table(style, &columns, rows)
}

/// `everybody else, by /32 and /56`
fn whom(limit: &LimitRow, is_one_of_more: bool) -> String {
    let usual = SourceLengths::default();
    let by = match (limit.source_v4, limit.source_v6) {
        (v4, v6) if (v4, v6) == (usual.v4, usual.v6) => String::new(),
        (v4, v6) => format!(", by /{v4} and /{v6}"),
    };
    let whom = match limit.sources.is_empty() {
        false => list(&limit.sources),
        true if is_one_of_more => "everybody else".to_owned(),
        true => "everybody".to_owned(),
    };
    whom + &by
}

fn what(value: &LimitValue) -> &str {
    Kind::ALL
        .into_iter()
        .find(|kind| kind.key() == value.what)
        .map_or(value.what.as_str(), |kind| kind.words())
}

fn cells(value: &LimitValue) -> (String, String) {
    let cell = |limit: &Option<String>, burst: &Option<String>| match (limit, burst) {
        (None, _) => "-".to_owned(),
        (Some(limit), None) => limit.clone(),
        (Some(limit), Some(burst)) => format!("{limit}, burst {burst}"),
    };
    (
        cell(&value.per_source, &value.burst),
        cell(&value.total, &value.total_burst),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::file;
    use std::path::Path;

    #[test]
    fn limits_are_told_by_whom_they_are_for() {
        let text = include_str!("../../../docs/examples/limits.toml");
        let policy = file::parse(text, Path::new("limits.toml"), 0).unwrap().policy;
        let rows: Vec<_> = policy
            .services
            .iter()
            .map(|service| (service.name.as_str(), service.limit_rows()))
            .collect();
        let rows = rows.iter().map(|(name, rows)| (*name, rows.as_slice()));
        assert_eq!(
            limits(rows, &Style::PLAIN),
            "\
LIMITED  FOR                             WHAT             PER SOURCE              IN ALL                    ON EXCESS
api      @partners, by /32 and /56       new connections  1,000/s, burst 1,000    -                         challenge
                                         bytes            50 MB/s, burst 50 MB    -
                                         connections      -                       5,000
         everybody else, by /32 and /56  new connections  50/s, burst 100         5,000/s, burst 5,000      challenge
                                         packets          20,000/s, burst 20,000  -
                                         bytes            50 MB/s, burst 50 MB    -
                                         connections      200                     20,000
ssh      everybody                       new connections  6/min, burst 10         -                         ban 10m
                                         packets          20,000/s, burst 20,000  -
                                         bytes            50 MB/s, burst 50 MB    -
dns      everybody                       packets          200/s, burst 500        100,000/s, burst 100,000  drop
"
        );
        assert_eq!(limits([("a", [].as_slice())], &Style::PLAIN), "");
    }
}

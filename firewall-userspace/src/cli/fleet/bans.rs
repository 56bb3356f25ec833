//! `ravelin ban --fleet`, `unban --fleet`, `bans --fleet`

use super::super::{Answer, Context};
use super::{Draft, Fleet, Stored};
use crate::fleet::selector::Selector;
use crate::fleet::statement::{BanTerms, Kind, Subject};
use crate::output::{self, FleetBanRow, Published};
use crate::policy::prefix;
use crate::store::shared::{Expect, PutError};
use anyhow::bail;
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;

/// What is asked of a ban.
pub struct Ban {
    pub network: IpNetwork,
    pub nodes: Option<Selector>,
    pub for_seconds: Option<u64>,
    pub why: String,
}

/// `ravelin ban --fleet`.
pub fn ban(ban: &Ban, context: &Context) -> anyhow::Result<Answer> {
    let fleet = context.fleet()?;
    let record = context.wait(async {
        let all = fleet.bans().await?;
        let name = prefix::show(ban.network);
        let base = all.get(&name);
        let until = ban.for_seconds.map(|seconds| fleet.now.saturating_add(seconds));
        let terms = BanTerms {
            until,
            why: ban.why.clone(),
        };
        let draft = Draft {
            kind: Kind::Ban,
            name,
            nodes: ban.nodes.clone().unwrap_or_else(Selector::every).to_string(),
            expires: until,
            lists: BTreeMap::new(),
            text: terms.to_text(),
        };
        let version = fleet.ban_version(base);
        let mut record = fleet.publish(draft, base, version).await?;
        fleet.sweep(&all, &record.name).await?;
        record.meant = fleet.meant(&record.nodes).await?;
        Ok(record)
    })?;
    context.show(&record, |record| {
        output::published(
            record,
            &format!("{} is banned", record.name),
            false,
            &context.style,
        )
    })?;
    Ok(Answer::Yes)
}

/// `ravelin unban --fleet`; without a prefix all of them.
pub fn unban(network: Option<IpNetwork>, context: &Context) -> anyhow::Result<Answer> {
    let fleet = context.fleet()?;
    let records = context.wait(async {
        let all = fleet.bans().await?;
        let live: Vec<(&String, &Stored)> = all
            .iter()
            .filter(|(_, stored)| fleet.is_live(stored))
            .filter(|(name, _)| network.is_none_or(|network| prefix::show(network) == **name))
            .collect();
        if let (Some(network), true) = (network, live.is_empty()) {
            bail!(
                "{} is not banned on the fleet (`ravelin bans --fleet`)",
                prefix::show(network)
            );
        }
        let mut records: Vec<Published> = Vec::new();
        for (name, stored) in live {
            let Some(statement) = stored.statement() else {
                continue;
            };
            let draft = Draft {
                kind: Kind::Unban,
                name: name.clone(),
                nodes: statement.nodes.clone(),
                // As long as the ban could come back.
                expires: statement.expires,
                lists: BTreeMap::new(),
                text: String::new(),
            };
            let version = fleet.ban_version(Some(stored));
            let mut record = fleet.publish(draft, Some(stored), version).await?;
            record.meant = fleet.meant(&record.nodes).await?;
            // Until when the word is kept is nobody's concern.
            record.expires = None;
            records.push(record);
        }
        fleet.sweep(&all, "").await?;
        Ok(records)
    })?;
    context.show(&records, |records| match records.as_slice() {
        [] => "nothing was banned\n".to_owned(),
        records => {
            let line = |record: &Published| {
                let done = format!("{} is not banned any more", record.name);
                output::published(record, &done, false, &context.style)
            };
            records.iter().map(line).collect()
        }
    })?;
    Ok(Answer::Yes)
}

/// `ravelin bans --fleet`.
pub fn list(context: &Context) -> anyhow::Result<Answer> {
    let fleet = context.fleet()?;
    let all = context.wait(fleet.bans())?;
    let rows: Vec<FleetBanRow> = all
        .values()
        .filter(|stored| stored.believed.is_err() || fleet.is_live(stored))
        .map(|stored| {
            let terms = stored
                .statement()
                .map(|statement| BanTerms::parse(&statement.text));
            FleetBanRow {
                signed: fleet.signed(Subject::Ban, stored),
                why: terms
                    .and_then(Result::ok)
                    .map(|terms| terms.why)
                    .unwrap_or_default(),
            }
        })
        .collect();
    context.show(&rows, |rows| output::fleet_bans(rows, fleet.now, &context.style))?;
    Ok(Answer::Yes)
}

impl Fleet {
    /// By prefix, whatever they say.
    async fn bans(&self) -> anyhow::Result<BTreeMap<String, Stored>> {
        let snapshot = self.snapshot(&[Subject::Ban.directory()]).await?;
        let bans = snapshot.entries.into_iter().map(|entry| {
            let name = entry
                .key
                .strip_prefix(Subject::Ban.directory())
                .unwrap_or_default();
            (name.replace('_', "/"), self.judge(Subject::Ban, entry))
        });
        Ok(bans.collect())
    }

    /// Somebody is banned by it now.
    fn is_live(&self, stored: &Stored) -> bool {
        stored
            .statement()
            .is_some_and(|statement| statement.kind == Kind::Ban)
            && !stored.is_expired(self.now)
    }

    /// Nobody counts bans: the clock is above every number that was given before, also if the store lost it.
    fn ban_version(&self, base: Option<&Stored>) -> u64 {
        let before = base
            .and_then(Stored::statement)
            .map_or(0, |statement| statement.version);
        self.now.max(before.saturating_add(1))
    }

    async fn meant(&self, nodes: &str) -> anyhow::Result<Vec<String>> {
        let view = self.view().await?;
        Ok(nodes.parse().map(|nodes| view.meant(&nodes)).unwrap_or_default())
    }

    /// Deletes what no node would take any more, and so leaves nothing behind.
    async fn sweep(&self, bans: &BTreeMap<String, Stored>, but: &str) -> anyhow::Result<()> {
        for (_, stored) in bans
            .iter()
            .filter(|(name, stored)| *name != but && stored.is_expired(self.now))
        {
            match self
                .store
                .delete(&stored.entry.key, Expect::unchanged(Some(&stored.entry)))
                .await
            {
                // Somebody else has a use for it.
                Ok(_) | Err(PutError::Changed(_)) => {}
                Err(PutError::Store(error)) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

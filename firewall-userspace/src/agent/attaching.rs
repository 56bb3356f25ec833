//! The owner's way with interfaces: does what [`super::links`] says is to be done.

use super::links::{State, Todo};
use super::owner::Owner;
use super::reload::chain;
use super::views::egress_word;
use crate::datapath::{Datapath, netlink};
use std::sync::PoisonError;
use std::time::Instant;

/// Why an interface is not filtered before there is a policy.
pub(super) const WAITING: &str = "it waits for the first policy: neither this node nor its fleet has one";

impl Owner {
    /// The first policy is in force: nothing has to wait any more.
    pub(super) fn attach_waiting(&mut self) {
        let since = Instant::now();
        let waiting: Vec<u32> = self
            .links
            .states()
            .filter(|(_, state)| matches!(state, State::Refused { .. }))
            .map(|(interface, _)| interface.index)
            .collect();
        for index in waiting {
            self.attach(index, since);
        }
    }

    pub(super) fn relist(&mut self, since: Instant) {
        match netlink::interfaces() {
            Ok(list) => {
                let todo = self.links.replace(list);
                self.carry_out(todo, since);
            }
            Err(error) => log::error!("cannot list the interfaces: {}", chain(&error)),
        }
    }

    pub(super) fn carry_out(&mut self, todo: Todo, since: Instant) {
        for index in todo.attach {
            self.attach(index, since);
        }
        for index in todo.detach {
            let name = self
                .links
                .get(index)
                .map_or_else(String::new, |one| one.name.clone());
            log::info!("interface {name} ({index}) is judged elsewhere from now on");
            self.detach_one(index, &name);
        }
        for (index, name) in todo.gone {
            log::info!("interface {name} ({index}) is gone");
            self.detach_one(index, &name);
        }
        self.configure |= todo.own_addresses;
        let names = self
            .links
            .known()
            .map(|interface| (interface.index, interface.name.clone()))
            .collect();
        self.out
            .directory
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .interfaces = names;
        if todo.relist {
            log::debug!("changes of interfaces were lost, listing anew");
            self.relist(since);
        }
    }

    pub(super) fn attach(&mut self, index: u32, since: Instant) {
        if self.in_force.is_none() {
            // A node of a fleet that waits for its first policy.
            self.links.refused(index, WAITING.into(), Instant::now());
            return;
        }
        let (Some(interface), Some(datapath)) = (self.links.get(index).cloned(), self.datapath.as_mut())
        else {
            return;
        };
        match datapath.attach(&interface, self.config.hook(&interface.name)) {
            Ok(attachment) => {
                log::info!(
                    "interface {} ({index}): {} {}{}, egress by {}{}",
                    interface.name,
                    attachment.ingress,
                    attachment.ingress.hook().to_uppercase(),
                    if attachment.frags {
                        ""
                    } else {
                        " without jumbo frames"
                    },
                    egress_word(attachment.egress),
                    attachment
                        .detail
                        .as_deref()
                        .map(|detail| format!(" ({detail})"))
                        .unwrap_or_default(),
                );
                log::debug!(
                    "{} was attached {:.1} ms after its event",
                    interface.name,
                    since.elapsed().as_secs_f64() * 1e3
                );
                self.links.attached(index, attachment);
                self.challenge.look_soon();
            }
            Err(error) => {
                let text = chain(&error);
                let wait = self.links.refused(index, text.clone(), Instant::now());
                log::warn!(
                    "interface {} ({index}) is not filtered, trying again in {wait:?}: {text}",
                    interface.name
                );
            }
        }
    }

    /// Puts back what somebody took off behind the agent's back. Gives the reason to end if the pins are gone.
    pub(super) fn check_links(&mut self) -> Option<&'static str> {
        let datapath = self.datapath.as_ref()?;
        let pinned = datapath.is_pinned();
        if !pinned && let Err(error) = std::fs::create_dir_all(&self.config.pins) {
            log::error!("cannot make {}: {error}", self.config.pins.display());
        }
        let lost: Vec<_> = self
            .links
            .states()
            .filter_map(|(interface, state)| match state {
                State::Attached(attachment) => {
                    let parts = datapath.lost(interface.index, attachment);
                    (!parts.is_empty()).then(|| (interface.index, interface.name.clone(), parts))
                }
                State::Refused { .. } => None,
            })
            .collect();
        let now = Instant::now();
        let open = now.duration_since(self.last_check).as_millis();
        self.last_check = now;
        for (index, name, parts) in lost {
            for (part, what) in &parts {
                log::error!(
                    "interface {name} ({index}) was open at {} for up to {open} ms, attaching again: {what}",
                    part.word()
                );
            }
            self.attach(index, now);
            if !self.links.is_attached(index) {
                continue;
            }
            for (part, what) in parts {
                let text = format!("{what}; put back after {open} ms at most");
                self.links.repaired(index, part, text);
            }
        }
        if pinned {
            return None;
        }
        // The programs attached by now hold their maps, so packets are filtered until the next agent takes over.
        let text = format!(
            "somebody removed the pinned maps below {}; the agent ends, because only a new start makes them again",
            self.config.pins.display()
        );
        log::error!("{text}");
        self.failure = Some(text);
        Some("the pins are gone")
    }

    /// What an earlier agent attached to and this one is not asked to.
    pub(super) fn detach_strays(&mut self) {
        let attached = match self.datapath.as_ref().map(Datapath::attached) {
            Some(Ok(attached)) => attached,
            Some(Err(error)) => {
                return log::warn!("cannot tell what an earlier agent attached to: {}", chain(&error));
            }
            None => return,
        };
        for index in attached {
            match self.links.get(index).cloned() {
                Some(interface) if self.links.wanted(&interface) => {}
                Some(interface) => {
                    log::warn!(
                        "interface {} ({index}) is not among those asked for: not filtered from now on",
                        interface.name
                    );
                    self.detach_one(index, &interface.name);
                }
                None => self.detach_one(index, "that is gone"),
            }
        }
    }

    pub(super) fn detach_one(&mut self, index: u32, name: &str) {
        if let Some(Err(error)) = self.datapath.as_mut().map(|datapath| datapath.detach(index)) {
            log::debug!("detaching {name} ({index}): {}", chain(&error));
        }
    }
}

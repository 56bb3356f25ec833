//! Somebody who is root writes into the maps of the agent: it is told, counted and put back, and packets are judged
//! rightly again.

use anyhow::{Context, Result, ensure};
use firewall_common::LAYOUT_VERSION;
use firewall_common::control::{AddressKey, Config, Control, Selector};
use firewall_common::image::{FLAG_DEFAULT_ALLOW, PAGE_SIZE, field};
use ravelin::policy::compile::compile;
use ravelin::policy::file;
use ravelin_tests::kernel::test_run;
use ravelin_tests::lab::{EVERYTHING, NOTHING};
use ravelin_tests::traffic::Echo;
use ravelin_tests::{Agent, Lab, bpf, wait};
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

const POLICY: &str = "version = 1\n[[service]]\nname = \"web\"\nports = [\"udp/8080\", \"tcp/8080\"]\nallow = [\"192.0.2.2\", \"2001:db8:1::2\"]\n\
                      limits = { packets = { per_source = \"100k/s\" } }\n";
/// What an intruder would rather have.
const OPEN: &str = "version = 1\n[defaults]\ningress = \"allow\"\n";

/// A node that serves the friend, whom nobody else reaches.
struct Stage {
    lab: Lab,
    agent: Agent,
    _echo: Vec<Echo>,
    _config: tempfile::TempDir,
}

impl Stage {
    fn new() -> Result<Stage> {
        let lab = Lab::new()?;
        let config = tempfile::tempdir()?;
        let path = config.path().join("agent.toml");
        std::fs::write(&path, "[drift]\nevery = \"1s\"\n")?;
        let agent = lab.agent_with(POLICY, &["--config", &path.to_string_lossy()])?;
        let stage = Stage {
            _echo: lab.serve(8080)?,
            lab,
            agent,
            _config: config,
        };
        stage.is_right("at the start");
        Ok(stage)
    }

    fn map(&self, name: &str) -> Result<OwnedFd> {
        bpf::pinned(&self.agent.pins().join(format!("v{LAYOUT_VERSION}/{name}")))
    }

    fn control(&self) -> Result<(OwnedFd, Vec<u8>)> {
        let map = self.map("CONTROL")?;
        let cell = bpf::read(&map, &0_u32.to_ne_bytes(), size_of::<Control>())?;
        Ok((map, cell))
    }

    fn selector(&self) -> Result<Selector> {
        let (_, cell) = self.control()?;
        let at = offset_of!(Control, selector);
        Ok(Selector(u64::from_ne_bytes(cell[at..at + 8].try_into()?)))
    }

    /// Writes into the control cell.
    fn set_word(&self, offset: usize, value: u64) -> Result<()> {
        let (map, mut cell) = self.control()?;
        cell[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        bpf::write(&map, &0_u32.to_ne_bytes(), &cell)
    }

    /// Puts a map into a slot of an array of maps.
    fn put(&self, name: &str, slot: u32, inner: &OwnedFd) -> Result<()> {
        bpf::write(
            &self.map(name)?,
            &slot.to_ne_bytes(),
            &inner.as_raw_fd().to_ne_bytes(),
        )
    }

    fn found(&self, what: &str) -> Result<f64> {
        self.agent
            .metric(&self.lab.node, "ravelin_drift_total", &[("what", what)])
    }

    fn is_right(&self, when: &str) {
        assert_eq!(self.lab.friend_reaches(8080), EVERYTHING, "{when}");
        assert_eq!(self.lab.stranger_reaches(8080), NOTHING, "{when}");
    }

    /// Changes something, and waits until it is found and judged rightly.
    fn finds(&self, what: &str, change: impl FnOnce(&Stage) -> Result<()>) -> Result<()> {
        self.meets(what, change)?;
        self.settled(what)
    }

    /// Changes something, and waits until it is found.
    fn meets(&self, what: &str, change: impl FnOnce(&Stage) -> Result<()>) -> Result<()> {
        let before = self.found(what)?;
        change(self).with_context(|| format!("changing {what}"))?;
        wait::until(&format!("{what} to be found"), || match self.found(what) {
            Ok(found) if found > before => Ok(()),
            Ok(found) => Err(format!("found {found} times")),
            Err(error) => Err(format!("{error:#}")),
        });
        Ok(())
    }

    /// What was put back stays, and nothing is found any more.
    fn settled(&self, what: &str) -> Result<()> {
        self.is_right(what);
        let status = self.agent.status()?;
        let found = status.drift.found;
        ensure!(found > 0 && status.drift.last_at.is_some(), "{:?}", status.drift);
        let last = status.drift.last.context("the status is silent")?;
        ensure!(last.starts_with("somebody changed "), "{last}");
        ensure!(status.ready, "not ready after {what}: {:?}", status.degraded);
        ensure!(
            self.agent
                .ok(&["status"])?
                .contains("Changed by somebody else and put back"),
            "the status is silent"
        );
        ensure!(
            self.agent.log().contains("put back, it was judged by for up to"),
            "{}",
            self.agent.log()
        );
        Ok(())
    }
}

/// An image in a map that fits into its slot.
fn image_of(policy: &str) -> Result<OwnedFd> {
    let compiled = compile(&file::parse(policy, Path::new("p"), 0)?.policy)?;
    let pages = compiled.image.len() / PAGE_SIZE;
    let map = bpf::inner_array(PAGE_SIZE as u32, pages as u32)?;
    for (index, page) in (0_u32..).zip(compiled.image.chunks(PAGE_SIZE)) {
        bpf::write(&map, &index.to_ne_bytes(), page)?;
    }
    Ok(map)
}

#[test]
fn another_selector_is_put_back() -> Result<()> {
    let stage = Stage::new()?;
    // The other slot is empty: all drops.
    stage.finds("selector", |stage| {
        let now = stage.selector()?;
        let other = Selector::new(now.image() + 1, now.config());
        stage.set_word(offset_of!(Control, selector), other.0)
    })?;
    // Or somebody's own policy stands there.
    stage.finds("selector", |stage| {
        let now = stage.selector()?;
        stage.put("IMAGES", (now.image() + 1) & 1, &image_of(OPEN)?)?;
        let other = Selector::new(now.image() + 1, now.config());
        stage.set_word(offset_of!(Control, selector), other.0)
    })?;
    // The other configuration is an older one.
    stage.finds("selector", |stage| {
        let now = stage.selector()?;
        let other = Selector::new(now.image(), now.config() + 1);
        stage.set_word(offset_of!(Control, selector), other.0)
    })?;
    // And the next policy goes its way.
    stage.agent.apply(&POLICY.replace("8080", "8081"))?;
    assert_eq!(stage.lab.friend_reaches(8080), NOTHING);
    Ok(())
}

#[test]
fn another_image_or_none_in_the_slot_in_force_is_put_back() -> Result<()> {
    let stage = Stage::new()?;
    let generation = stage.agent.status()?.policy.generation;
    stage.finds("image", |stage| {
        let slot = stage.selector()?.image();
        stage.put("IMAGES", slot, &image_of(OPEN)?)
    })?;
    stage.finds("image", |stage| {
        let slot = stage.selector()?.image();
        bpf::delete(&stage.map("IMAGES")?, &slot.to_ne_bytes())
    })?;
    stage.finds("counters", |stage| {
        let slot = stage.selector()?.image();
        bpf::delete(&stage.map("COUNTERS")?, &slot.to_ne_bytes())
    })?;
    // The counters that were there go on, and the policy is the one that it was.
    let before = stage.agent.counts()?.of("web", "pass", "allowed");
    assert_eq!(stage.lab.friend_reaches(8080), EVERYTHING);
    let status = stage.agent.status()?;
    assert!(stage.agent.counts()?.of("web", "pass", "allowed") > before && before > 0);
    assert_eq!(status.policy.generation, generation);
    Ok(())
}

/// A frozen map takes no system call, but a program can write to it: the bytes that are read back tell.
#[test]
fn an_image_that_a_program_wrote_to_is_replaced() -> Result<()> {
    let stage = Stage::new()?;
    let before = stage.agent.status()?.policy;
    stage.finds("image", |stage| {
        let slot = stage.selector()?.image();
        let image = stage.map(&format!("image-{slot}"))?;
        let page = bpf::read(&image, &0_u32.to_ne_bytes(), PAGE_SIZE)?;
        ensure!(
            bpf::write(&image, &0_u32.to_ne_bytes(), &page).is_err(),
            "the image is not frozen"
        );
        let program = bpf::writer(&image, field::FLAGS as i16, FLAG_DEFAULT_ALLOW as i32)?;
        test_run(program.as_fd(), &[0; 64], 1)?;
        let changed = bpf::read(&image, &0_u32.to_ne_bytes(), PAGE_SIZE)?;
        ensure!(changed != page, "the program wrote nothing");
        Ok(())
    })?;
    let after = wait::until("another generation", || {
        let policy = stage.agent.status().map_err(|error| format!("{error:#}"))?.policy;
        match policy.generation > before.generation {
            true => Ok(policy),
            false => Err(format!("generation {}", policy.generation)),
        }
    });
    assert_eq!(after.0.digest, before.digest);
    let slot = stage.selector()?.image();
    let page = bpf::read(
        &stage.map(&format!("image-{slot}"))?,
        &0_u32.to_ne_bytes(),
        PAGE_SIZE,
    )?;
    assert_eq!(page[field::FLAGS as usize], 0, "the flag is still set");
    stage.settled("an image that was written to")
}

#[test]
fn another_configuration_is_put_back() -> Result<()> {
    let stage = Stage::new()?;
    // Observing lets everything in.
    stage.finds("config", |stage| {
        let (map, slot) = (stage.map("CONFIG")?, stage.selector()?.config());
        let mut config = bpf::read(&map, &slot.to_ne_bytes(), size_of::<Config>())?;
        config[offset_of!(Config, observe)] = 1;
        bpf::write(&map, &slot.to_ne_bytes(), &config)
    })?;
    assert_eq!(stage.agent.status()?.mode, "enforce");
    // A mode that is set by command is nobody's doing; looked at by the time that something else is found.
    let found = stage.found("config")?;
    stage.agent.ok(&["observe"])?;
    stage.meets("words", |stage| stage.set_word(offset_of!(Control, zero), 1))?;
    assert_eq!(stage.lab.stranger_reaches(8080), EVERYTHING);
    stage.agent.ok(&["enforce"])?;
    stage.finds("words", |stage| stage.set_word(offset_of!(Control, zero), 1))?;
    assert_eq!(stage.found("config")?, found);
    Ok(())
}

#[test]
fn words_addresses_and_bindings_are_put_back() -> Result<()> {
    let stage = Stage::new()?;
    // With another mask every flow is sought where it is not.
    stage.finds("words", |stage| {
        let at = offset_of!(Control, flow_mask);
        let (_, cell) = stage.control()?;
        let bans = u32::from_ne_bytes(cell[at + 4..at + 8].try_into()?);
        stage.set_word(at, u64::from(bans) << 32)
    })?;
    stage.finds("words", |stage| {
        stage.set_word(offset_of!(Control, zero), u64::MAX)
    })?;
    stage.finds("addresses", |stage| {
        let own = AddressKey {
            high: 0,
            low: u64::from(u32::from(ravelin_tests::lab::NODE)),
        };
        let key = [own.high.to_ne_bytes(), own.low.to_ne_bytes()].concat();
        bpf::delete(&stage.map("LOCAL")?, &key)
    })?;
    // Unbound, every packet of the service is in excess.
    stage.finds("limits", |stage| {
        let slot = stage.selector()?.image();
        let local = slot * firewall_common::limit::MAX_LOCAL;
        bpf::write(&stage.map("BINDINGS")?, &local.to_ne_bytes(), &[0; 8])
    })
}

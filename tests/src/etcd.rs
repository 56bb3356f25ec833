//! A real etcd for tests and for the demo: members with TLS on both of their sides, clients known by their certificates, and everything
//! that can happen to a cluster.
//!
//! Certificates are made by `openssl`; whoever has one with the common name `alice` is etcd's user `alice`. Dropping a
//! [`Cluster`] kills its members and removes their data.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a cluster may take to get healthy, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// The user who may do everything, with etcd's authentication on or off.
pub const ROOT: &str = "root";

/// Where a cluster runs and by which programs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its directory's name begins so, with the number of this process behind it.
    pub prefix: String,
    /// The handle of the network namespace that it runs in: `/run/netns/x`.
    pub namespace: Option<PathBuf>,
    /// Of each member: where clients come, and where the other members do.
    pub members: Vec<(SocketAddr, SocketAddr)>,
    pub etcd: PathBuf,
    pub etcdctl: PathBuf,
}

impl Place {
    /// So many members on free ports of this host's loopback.
    ///
    /// # Errors
    /// There are no free ports.
    pub fn loopback(prefix: &str, members: usize) -> Result<Place> {
        // All at once, so that no port is given out twice.
        let listeners = (0..2 * members)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<Vec<_>, _>>()
            .context("looking for free ports")?;
        let addresses = listeners
            .iter()
            .map(TcpListener::local_addr)
            .collect::<Result<Vec<_>, _>>()
            .context("looking for free ports")?;
        Ok(Place {
            prefix: prefix.to_owned(),
            namespace: None,
            members: addresses.chunks(2).map(|pair| (pair[0], pair[1])).collect(),
            etcd: program("RAVELIN_ETCD", "etcd"),
            etcdctl: program("RAVELIN_ETCDCTL", "etcdctl"),
        })
    }

    /// A member at each of these addresses of a namespace, at etcd's own ports.
    pub fn inside(prefix: &str, namespace: &Path, addresses: &[IpAddr]) -> Place {
        Place {
            prefix: prefix.to_owned(),
            namespace: Some(namespace.to_owned()),
            members: addresses
                .iter()
                .map(|address| (SocketAddr::new(*address, 2379), SocketAddr::new(*address, 2380)))
                .collect(),
            etcd: program("RAVELIN_ETCD", "etcd"),
            etcdctl: program("RAVELIN_ETCDCTL", "etcdctl"),
        }
    }
}

/// One that `cargo xtask` found, or one on PATH.
fn program(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| PathBuf::from(name), PathBuf::from)
}

/// Members of one cluster, running or not.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    dir: TempDir,
    running: Vec<Option<Child>>,
    /// More arguments for each member.
    arguments: Vec<String>,
}

impl Cluster {
    /// Starts all members and waits until they are healthy.
    ///
    /// # Errors
    /// etcd or openssl are not installed, or the members do not get healthy; the error holds their logs.
    pub fn start(place: Place) -> Result<Cluster> {
        Cluster::start_with(place, &[])
    }

    /// [`Cluster::start`] with more arguments for each etcd.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(place: Place, arguments: &[&str]) -> Result<Cluster> {
        let dir = TempDir::with_prefix(format!("{}-{}-", place.prefix, std::process::id()))
            .context("making a directory for etcd")?;
        let mut cluster = Cluster {
            running: place.members.iter().map(|_| None).collect(),
            place,
            dir,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        };
        cluster.authority()?;
        cluster.certificate("member")?;
        cluster.certificate(ROOT)?;
        for member in cluster.members() {
            cluster.launch(member)?;
        }
        cluster.wait_healthy()?;
        Ok(cluster)
    }

    /// The numbers of all members.
    pub fn members(&self) -> std::ops::Range<usize> {
        0..self.place.members.len()
    }

    /// `https://address:port` of a member.
    pub fn endpoint(&self, member: usize) -> String {
        format!("https://{}", self.place.members[member].0)
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.members().map(|member| self.endpoint(member)).collect()
    }

    /// The certificate that has signed all others.
    pub fn ca(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// Certificate and key of a client with this name, made on first use.
    ///
    /// # Errors
    /// What openssl says.
    pub fn client(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let pair = (
            self.file(&format!("{name}.pem")),
            self.file(&format!("{name}.key")),
        );
        if !pair.0.exists() {
            self.certificate(name)?;
        }
        Ok(pair)
    }

    /// The section `[store]` of a client with this name.
    ///
    /// # Errors
    /// As [`Cluster::client`].
    pub fn settings(&self, name: &str) -> Result<String> {
        let (cert, key) = self.client(name)?;
        Ok(format!(
            "[store]\nendpoints = {:?}\nca = {:?}\ncert = {cert:?}\nkey = {key:?}\n",
            self.endpoints(),
            self.ca()
        ))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self, member: usize) -> PathBuf {
        self.file(&format!("m{member}.etcd"))
    }

    /// What a member has logged.
    pub fn log(&self, member: usize) -> String {
        std::fs::read_to_string(self.file(&format!("m{member}.log"))).unwrap_or_default()
    }

    pub fn pid(&self, member: usize) -> Option<u32> {
        self.running[member].as_ref().map(Child::id)
    }

    /// Starts a member, with the data it has. It need not be healthy yet.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch(&mut self, member: usize) -> Result<()> {
        let (client, peer) = self.place.members[member];
        let all: Vec<String> = self
            .members()
            .map(|one| format!("m{one}=https://{}", self.place.members[one].1))
            .collect();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.file(&format!("m{member}.log")))
            .context("opening etcd's log")?;
        let (cert, key, ca) = (self.file("member.pem"), self.file("member.key"), self.ca());
        let mut command = self.inside(&self.place.etcd);
        command
            .args(["--name", &format!("m{member}")])
            .arg("--data-dir")
            .arg(self.data(member))
            .args([
                &format!("--listen-client-urls=https://{client}"),
                &format!("--advertise-client-urls=https://{client}"),
                &format!("--listen-peer-urls=https://{peer}"),
                &format!("--initial-advertise-peer-urls=https://{peer}"),
                &format!("--initial-cluster={}", all.join(",")),
            ])
            .args(["--initial-cluster-token", "ravelin-test"])
            .args(["--client-cert-auth", "--peer-client-cert-auth", "--logger=zap"]);
        for (flag, file) in [
            ("--trusted-ca-file", &ca),
            ("--cert-file", &cert),
            ("--key-file", &key),
            ("--peer-trusted-ca-file", &ca),
            ("--peer-cert-file", &cert),
            ("--peer-key-file", &key),
        ] {
            command.arg(flag).arg(file);
        }
        command
            .args(&self.arguments)
            .stdout(log.try_clone().context("sharing etcd's log")?)
            .stderr(log);
        self.running[member] = Some(
            command
                .spawn()
                .context("starting etcd (`cargo xtask setup` fetches it)")?,
        );
        Ok(())
    }

    /// Waits until every member that runs answers with the agreement of a majority.
    ///
    /// # Errors
    /// They do not; the error holds what was said and their logs.
    pub fn wait_healthy(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let running: Vec<String> = self
                .members()
                .filter(|member| self.running[*member].is_some())
                .map(|member| self.endpoint(member))
                .collect();
            let output = self.etcdctl(ROOT, &running, &["endpoint", "health", "--command-timeout=2s"])?;
            if output.status.success() {
                return Ok(());
            }
            let exited = self
                .running
                .iter_mut()
                .flatten()
                .any(|child| matches!(child.try_wait(), Ok(Some(_))));
            if exited || begin.elapsed() > PATIENCE {
                let logs: Vec<String> = self.members().map(|member| self.log(member)).collect();
                bail!(
                    "etcd does not get healthy: {}\n{}",
                    String::from_utf8_lossy(&output.stderr),
                    logs.join("\n")
                );
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// kill -9, and waits until the process is gone.
    ///
    /// # Errors
    /// It was not running.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        let mut child = self.running[member].take().context("the member is not running")?;
        child.kill().context("killing etcd")?;
        child.wait().context("waiting for etcd")?;
        Ok(())
    }

    /// SIGSTOP: connections stand, and nothing answers.
    ///
    /// # Errors
    /// It is not running.
    pub fn stop(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::SIGSTOP)
    }

    /// SIGCONT, after [`Cluster::stop`].
    ///
    /// # Errors
    /// It is not running.
    pub fn go_on(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::SIGCONT)
    }

    fn signal(&self, member: usize, signal: Signal) -> Result<()> {
        let pid = self.pid(member).context("the member is not running")?;
        kill(Pid::from_raw(pid.cast_signed()), signal).context("signalling etcd")
    }

    /// kill -9 of all that run.
    ///
    /// # Errors
    /// They cannot be killed.
    pub fn kill_all(&mut self) -> Result<()> {
        for member in self.members() {
            if self.running[member].is_some() {
                self.kill(member)?;
            }
        }
        Ok(())
    }

    /// Starts all that do not run and waits until they are healthy.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_all(&mut self) -> Result<()> {
        for member in self.members() {
            if self.running[member].is_none() {
                self.launch(member)?;
            }
        }
        self.wait_healthy()
    }

    /// All members lose their data, and make a new cluster.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn wipe(&mut self) -> Result<()> {
        self.remove_data()?;
        self.start_all()
    }

    fn remove_data(&mut self) -> Result<()> {
        self.kill_all()?;
        for member in self.members() {
            std::fs::remove_dir_all(self.data(member)).context("removing etcd's data")?;
        }
        Ok(())
    }

    /// A backup of the whole store, as operators make it: for [`Cluster::restore`].
    ///
    /// # Errors
    /// What etcdctl says.
    pub fn backup(&self, name: &str) -> Result<PathBuf> {
        let file = self.file(name);
        let path = file.display().to_string();
        let output = self.etcdctl(ROOT, &[self.endpoint(0)], &["snapshot", "save", &path])?;
        ensure!(
            output.status.success(),
            "etcdctl snapshot save: {}",
            said(&output)
        );
        Ok(file)
    }

    /// Puts a backup in the place of all data, as operators do it.
    ///
    /// # Errors
    /// What etcdctl says, or as [`Cluster::start`].
    pub fn restore(&mut self, backup: &Path) -> Result<()> {
        self.remove_data()?;
        let all: Vec<String> = self
            .members()
            .map(|one| format!("m{one}=https://{}", self.place.members[one].1))
            .collect();
        for member in self.members() {
            let peer = self.place.members[member].1;
            let output = Command::new(&self.place.etcdctl)
                .env("ETCDCTL_API", "3")
                .args(["snapshot", "restore"])
                .arg(backup)
                .arg("--data-dir")
                .arg(self.data(member))
                .args(["--name", &format!("m{member}")])
                .args(["--initial-cluster-token", "ravelin-test"])
                .arg(format!("--initial-cluster={}", all.join(",")))
                .arg(format!("--initial-advertise-peer-urls=https://{peer}"))
                .stdin(Stdio::null())
                .output()
                .context("starting etcdctl")?;
            ensure!(
                output.status.success(),
                "etcdctl snapshot restore: {}",
                said(&output)
            );
        }
        self.start_all()
    }

    /// Forgets all history before now.
    ///
    /// # Errors
    /// What etcdctl says.
    pub fn compact(&self) -> Result<()> {
        let status = self.ctl(ROOT, &["endpoint", "status", "--write-out=json"])?;
        let revision = status
            .split("\"revision\":")
            .skip(1)
            .filter_map(|rest| {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse::<i64>().ok()
            })
            .max()
            .context("etcdctl does not tell a revision")?;
        self.ctl(ROOT, &["compaction", "--physical", &revision.to_string()])
            .map(drop)
    }

    /// Runs `etcdctl` as this user, against all members; gives its standard output.
    ///
    /// # Errors
    /// What it says.
    pub fn ctl(&self, user: &str, arguments: &[&str]) -> Result<String> {
        let output = self.etcdctl(user, &self.endpoints(), arguments)?;
        ensure!(
            output.status.success(),
            "etcdctl {} as {user}: {}",
            arguments.join(" "),
            said(&output)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn etcdctl(&self, user: &str, endpoints: &[String], arguments: &[&str]) -> Result<Output> {
        let (cert, key) = self.client(user)?;
        let mut command = self.inside(&self.place.etcdctl);
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", endpoints.join(",")))
            .arg("--cacert")
            .arg(self.ca())
            .arg("--cert")
            .arg(cert)
            .arg("--key")
            .arg(key)
            .args(arguments)
            .output()
            .context("starting etcdctl (package etcd-client)")
    }

    /// A program in the cluster's namespace and directory. By the name of that directory a later test knows what a killed one
    /// has left running.
    fn inside(&self, program: &Path) -> Command {
        let mut command = match &self.place.namespace {
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", namespace.display())).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn authority(&self) -> Result<()> {
        // Nothing of the system's configuration.
        std::fs::write(
            self.file("openssl.cnf"),
            "[req]\ndistinguished_name = name\n[name]\n",
        )
        .context("writing openssl's configuration")?;
        self.openssl("ca", "ravelin-test-ca", &["basicConstraints=critical,CA:TRUE"])
    }

    /// A certificate for this name, good for client and server. That of members has all their addresses.
    fn certificate(&self, name: &str) -> Result<()> {
        let mut extensions = vec![
            "basicConstraints=critical,CA:FALSE".to_owned(),
            "extendedKeyUsage=serverAuth,clientAuth".to_owned(),
        ];
        if name == "member" {
            let mut addresses: Vec<String> = self
                .place
                .members
                .iter()
                .map(|(client, _)| format!("IP:{}", client.ip()))
                .collect();
            addresses.dedup();
            extensions.push(format!("subjectAltName={}", addresses.join(",")));
        }
        let extensions: Vec<&str> = extensions.iter().map(String::as_str).collect();
        self.openssl(name, name, &extensions)
    }

    /// Makes `NAME.key` and `NAME.pem`, signed by the authority, which signs itself.
    fn openssl(&self, name: &str, common_name: &str, extensions: &[&str]) -> Result<()> {
        let mut command = Command::new("openssl");
        command
            .current_dir(self.dir.path())
            .args(["req", "-x509", "-config", "openssl.cnf", "-newkey", "ec"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", &format!("/CN={common_name}")])
            .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")])
            .stdin(Stdio::null());
        if name != "ca" {
            command.args(["-CA", "ca.pem", "-CAkey", "ca.key"]);
        }
        for extension in extensions {
            command.args(["-addext", extension]);
        }
        let output = command.output().context("starting openssl")?;
        ensure!(output.status.success(), "openssl: {}", said(&output));
        Ok(())
    }
}

fn said(output: &Output) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    format!("{}: {}", output.status, text.trim())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        for member in self.members() {
            if panicking {
                let log = self.log(member);
                let lines: Vec<&str> = log.lines().collect();
                let last = &lines[lines.len().saturating_sub(15)..];
                eprintln!("end of the log of etcd {member}:\n{}", last.join("\n"));
            }
            if let Some(mut child) = self.running[member].take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

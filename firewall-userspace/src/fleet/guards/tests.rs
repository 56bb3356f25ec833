use super::*;
use crate::policy::file::{parse, parse_with};
use crate::policy::groups::Resolve;
use std::path::Path;

fn guards(text: &str) -> Guards {
    toml::from_str(text).unwrap_or_else(|error| panic!("{error}"))
}

fn document(text: &str) -> Loaded {
    let text = format!("version = 1\n[policy]\nname = \"x\"\nnodes = \"*\"\n{text}");
    parse(&text, Path::new("x"), 0).unwrap_or_else(|error| panic!("{error}"))
}

fn allowing(allow: &str) -> Loaded {
    document(&format!(
        "[[service]]\nname = \"web\"\nports = [\"tcp/80\", \"tcp/443\"]\nallow = [{allow}]\n"
    ))
}

fn refused(guards: &Guards, loaded: &Loaded) -> String {
    guards.check(loaded).expect_err("refused").to_string()
}

#[test]
fn nothing_opens_everything_unless_the_node_says_so() {
    let guards = Guards::default();
    assert_eq!(guards, toml::from_str("").unwrap());
    assert_eq!(
        refused(&guards, &allowing("\"any\"")),
        "x:8:10: service \"web\" allows everybody ([guard] allow_any)"
    );
    // All of it, in ever smaller pieces; and half of it without two neighbours.
    let cut = |length: u8, step: u64| -> String {
        let starts = (0..1_u64 << length).step_by(step as usize);
        let texts = starts.map(|at| {
            format!(
                "\"{}/{length}\"",
                std::net::Ipv4Addr::from((at << (32 - length)) as u32)
            )
        });
        texts.collect::<Vec<_>>().join(", ")
    };
    for allow in [cut(1, 1), cut(8, 1), cut(9, 2), cut(12, 16)] {
        let told = refused(&guards, &allowing(&allow));
        assert!(
            told.ends_with("more IPv4 addresses than a /7 has ([guard] max_breadth)"),
            "{told}"
        );
    }
    let told = refused(&guards, &allowing("\"2000::/3\""));
    assert!(
        told.ends_with("more IPv6 addresses than a /16 has ([guard] max_breadth)"),
        "{told}"
    );
    let told = refused(&guards, &allowing("\"::/1\", \"8000::/1\""));
    assert!(told.contains("IPv6"), "{told}");
    let open = document("[defaults]\ningress = \"allow\"\n");
    assert_eq!(
        refused(&guards, &open),
        "it lets in what no service names (ingress = \"allow\") ([guard] allow_default_open)"
    );
    assert_eq!(self::guards("allow_default_open = true").check(&open), Ok(()));
}

#[test]
fn ordinary_documents_pass() {
    let guards = Guards::default();
    for allow in [
        "",
        "\"10.0.0.0/8\", \"172.16.0.0/12\", \"192.168.0.0/16\", \"10.1.0.0/16\"",
        "\"2001:db8::/32\", \"fd00:1234::/32\"",
    ] {
        assert_eq!(guards.check(&allowing(allow)), Ok(()), "{allow}");
    }
    // Whom it denies and where it sends may be everybody.
    let loaded = document(
        "[defaults]\negress = \"deny\"\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\ndeny = [\"any\"]\n\
         [[egress]]\nname = \"out\"\nto = [\"any\"]\n",
    );
    assert_eq!(guards.check(&loaded), Ok(()));
}

#[test]
fn breadth_is_bounded_to_the_address() {
    let guards = guards("max_breadth = { v4 = 24, v6 = 64 }");
    assert_eq!(
        guards.check(&allowing(
            "\"192.0.2.0/25\", \"192.0.2.128/25\", \"2001:db8::/64\""
        )),
        Ok(())
    );
    assert!(refused(&guards, &allowing("\"192.0.2.0/24\", \"198.51.100.1\"")).contains("a /24 has"));
    assert!(refused(&guards, &allowing("\"2001:db8::/64\", \"2001:db8:1::1\"")).contains("a /64 has"));
    let none = self::guards("max_breadth = { v4 = 0, v6 = 0 }");
    assert_eq!(
        none.check(&allowing(
            "\"0.0.0.0/1\", \"128.0.0.0/1\", \"::/1\", \"8000::/1\""
        )),
        Ok(())
    );
    assert!(none.check(&allowing("\"any\"")).is_err());
}

#[test]
fn everybody_may_be_let_in_where_the_node_says() {
    let some = guards("allow_any = [\"tcp/443\", \"tcp/80-90\", \"icmp/echo\"]");
    assert_eq!(some.check(&allowing("\"any\"")), Ok(()));
    let wide = |ports: &str| {
        document(&format!(
            "[[service]]\nname = \"a\"\nports = [{ports}]\nallow = [\"any\"]\n"
        ))
    };
    assert_eq!(some.check(&wide("\"tcp/85-90\", \"icmp/echo\"")), Ok(()));
    for ports in [
        "\"tcp/79-80\"",
        "\"tcp/443\", \"udp/443\"",
        "\"tcp/1-65535\"",
        "\"tcp/91\"",
    ] {
        assert!(some.check(&wide(ports)).is_err(), "{ports}");
    }
    assert_eq!(guards("allow_any = true").check(&wide("\"tcp/1-65535\"")), Ok(()));
}

#[test]
fn what_the_node_keeps_for_itself_no_document_names() {
    let guards =
        guards("forbid_services = [\"ssh*\", \"backup\"]\nforbid_ports = [\"tcp/22\", \"udp/500-600\"]");
    let service = |name: &str, ports: &str| {
        document(&format!(
            "[[service]]\nname = \"{name}\"\nports = [\"{ports}\"]\nallow = [\"192.0.2.1\"]\n"
        ))
    };
    assert_eq!(
        refused(&guards, &service("ssh-2", "tcp/2222")),
        "x:6:8: service \"ssh-2\" has a name that this node keeps for itself (\"ssh*\") ([guard] forbid_services)"
    );
    assert!(guards.check(&service("backup", "tcp/1")).is_err());
    assert_eq!(guards.check(&service("backups", "tcp/1")), Ok(()));
    assert_eq!(
        refused(&guards, &service("all", "tcp/1-65535")),
        "x:6:8: service \"all\" names tcp/22, which this node keeps for itself ([guard] forbid_ports)"
    );
    assert!(refused(&guards, &service("vpn", "udp/600-700")).contains("udp/600"));
    for ports in ["tcp/23", "udp/22", "udp/601"] {
        assert_eq!(guards.check(&service("vpn", ports)), Ok(()), "{ports}");
    }
}

#[test]
fn documents_are_bounded_in_size() {
    let small = guards("max_document_bytes = 1024\nmax_services = 3");
    assert_eq!(small.check_size(1024), Ok(()));
    assert_eq!(
        small.check_size(1025).unwrap_err().to_string(),
        "1025 bytes, more than 1024 ([guard] max_document_bytes)"
    );
    let comment = format!("# {}\n", "x".repeat(1024));
    assert!(refused(&small, &document(&comment)).contains("max_document_bytes"));
    let services = |count: u32| {
        let each =
            (1..=count).map(|port| format!("[[service]]\nname = \"s{port}\"\nports = [\"tcp/{port}\"]\n"));
        document(&each.collect::<String>())
    };
    assert_eq!(small.check(&services(3)), Ok(()));
    assert!(refused(&small, &services(4)).contains("4 services, more than 3"));
    assert!(Guards::default().check(&services(1001)).is_err());
}

#[test]
fn a_within_is_as_narrow_as_an_allow() {
    struct Nobody;
    impl Resolve for Nobody {
        fn file(&mut self, _: &Path) -> std::io::Result<Vec<u8>> {
            unreachable!("no list")
        }
        fn nodes(
            &mut self,
            _: &crate::fleet::selector::Selector,
            _: Option<&[ipnetwork::IpNetwork]>,
        ) -> Option<Vec<std::net::IpAddr>> {
            Some(Vec::new())
        }
    }
    let group = |within: &str| {
        let text = format!("version = 1\n[groups]\nweb = {{ nodes = \"role=web\", within = [{within}] }}\n");
        parse_with(&text, Path::new("x"), 0, &mut Nobody).unwrap()
    };
    assert_eq!(Guards::default().check(&group("\"10.0.0.0/8\"")), Ok(()));
    assert_eq!(
        refused(&Guards::default(), &group("\"0.0.0.0/1\", \"128.0.0.0/1\"")),
        "x:3:1: the \"within\" of group \"web\" holds more IPv4 addresses than a /7 has ([guard] max_breadth)"
    );
}

#[test]
fn mistakes_say_what_would_be_accepted() {
    for (text, words) in [
        ("max_breadth = { v4 = 33 }", "v4 of 0 to 32"),
        ("max_breadth = { v5 = 3 }", "unknown field `v5`"),
        ("max_breadth = 8", "max_breadth = { v4 = 8, v6 = 16 }"),
        ("max_document_bytes = 0", "1024 to 1048576"),
        ("max_services = -1", "1 to 65533"),
        ("forbid_ports = [\"22\"]", "forbid_ports: \"22\" has no protocol"),
        ("allow_any = [\"https\"]", "allow_any: "),
        ("allow_any = 3", "true, false or a list of ports"),
        (
            "forbid_services = [\"a b\"]",
            "neither the name of a service nor a pattern",
        ),
        ("breadth = 3", "unknown field `breadth`"),
    ] {
        let error = toml::from_str::<Guards>(text).expect_err(text).to_string();
        assert!(error.contains(words), "{error}");
    }
    // A length that is not said stays.
    assert_eq!(
        guards("max_breadth = { v4 = 12 }").max_breadth,
        Breadth { v4: 12, v6: 16 }
    );
}

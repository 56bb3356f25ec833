use super::*;
use proptest::prelude::*;

#[test]
fn reads_the_forms_people_type() {
    let cases = [
        (
            "tcp 10.20.3.4 -> 8443",
            "tcp 10.20.3.4:49152 -> 192.0.2.1:8443 flags syn",
        ),
        (
            "tcp 10.20.3.4 to 8443",
            "tcp 10.20.3.4:49152 -> 192.0.2.1:8443 flags syn",
        ),
        (
            "TCP from 10.20.3.4 to :8443",
            "tcp 10.20.3.4:49152 -> 192.0.2.1:8443 flags syn",
        ),
        (
            "tcp 10.20.3.4->8443",
            "tcp 10.20.3.4:49152 -> 192.0.2.1:8443 flags syn",
        ),
        (
            "tcp/8443 from 10.20.3.4",
            "tcp 10.20.3.4:49152 -> 192.0.2.1:8443 flags syn",
        ),
        (
            "10.20.3.4:5555 -> 198.51.100.1:8443",
            "tcp 10.20.3.4:5555 -> 198.51.100.1:8443 flags syn",
        ),
        (
            "tcp 10.20.3.4 -> 22 flags syn|ack",
            "tcp 10.20.3.4:49152 -> 192.0.2.1:22 flags syn,ack",
        ),
        (
            "tcp 10.20.3.4 -> 22 flags none",
            "tcp 10.20.3.4:49152 -> 192.0.2.1:22 flags none",
        ),
        ("udp 10.20.3.4:5353 -> 53", "udp 10.20.3.4:5353 -> 192.0.2.1:53"),
        ("sctp 10.20.3.4 3868", "sctp 10.20.3.4:49152 -> 192.0.2.1:3868"),
        (
            "tcp [2001:db8::7]:5555 -> [2001:db8::1]:443",
            "tcp [2001:db8::7]:5555 -> [2001:db8::1]:443 flags syn",
        ),
        (
            "tcp 2001:db8::7 -> 443",
            "tcp [2001:db8::7]:49152 -> [2001:db8::1]:443 flags syn",
        ),
        ("fe80::1 -> 443", "tcp [fe80::1]:49152 -> [fe80::2]:443 flags syn"),
        (
            "icmp echo from 10.20.3.4",
            "icmp echo from 10.20.3.4 -> 192.0.2.1",
        ),
        (
            "icmp from 2001:db8::7",
            "icmpv6 echo from 2001:db8::7 -> 2001:db8::1",
        ),
        ("ping 10.20.3.4", "icmp echo from 10.20.3.4 -> 192.0.2.1"),
        ("icmp/echo 10.20.3.4", "icmp echo from 10.20.3.4 -> 192.0.2.1"),
        (
            "icmp 3/4 from 10.20.3.4",
            "icmp dest-unreachable from 10.20.3.4 -> 192.0.2.1 code 4",
        ),
        (
            "icmpv6 packet-too-big from 2001:db8::7",
            "icmpv6 packet-too-big from 2001:db8::7 -> 2001:db8::1",
        ),
        (
            "icmp 40 from 10.20.3.4 code 1",
            "icmp 40 from 10.20.3.4 -> 192.0.2.1 code 1",
        ),
        ("proto 47 10.20.3.4", "proto 47 from 10.20.3.4 -> 192.0.2.1"),
        (
            "proto/50 from 2001:db8::7",
            "proto 50 from 2001:db8::7 -> 2001:db8::1",
        ),
        (
            "udp 10.20.3.4 -> 53 vlan 10,20",
            "udp 10.20.3.4:49152 -> 192.0.2.1:53 vlan 10,20",
        ),
        (
            "in tcp 10.20.3.4 -> 8443",
            "tcp 10.20.3.4:49152 -> 192.0.2.1:8443 flags syn",
        ),
        (
            "out tcp -> 198.51.100.7:443",
            "out tcp 192.0.2.1:49152 -> 198.51.100.7:443 flags syn",
        ),
        (
            "out tcp 198.51.100.7:443",
            "out tcp 192.0.2.1:49152 -> 198.51.100.7:443 flags syn",
        ),
        (
            "egress tcp/443 198.51.100.7",
            "out tcp 192.0.2.1:49152 -> 198.51.100.7:443 flags syn",
        ),
        (
            "out tcp :8443 -> 203.0.113.9:5555 flags syn,ack",
            "out tcp 192.0.2.1:8443 -> 203.0.113.9:5555 flags syn,ack",
        ),
        (
            "out udp 2001:db8::9 -> [2001:db8::53]:53",
            "out udp [2001:db8::9]:49152 -> [2001:db8::53]:53",
        ),
        (
            "out ping 198.51.100.7",
            "out icmp echo from 192.0.2.1 -> 198.51.100.7",
        ),
        (
            "out icmpv6 echo to 2001:db8::7",
            "out icmpv6 echo from 2001:db8::1 -> 2001:db8::7",
        ),
        (
            "out proto 47 to 198.51.100.7",
            "out proto 47 from 192.0.2.1 -> 198.51.100.7",
        ),
        (
            "icmpv6 mld-query from fe80::2 ttl 2",
            "icmpv6 mld-query from fe80::2 -> fe80::1 ttl 2",
        ),
    ];
    for (text, shown) in cases {
        let spec = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(spec.to_string(), shown, "{text}");
        assert_eq!(
            parse(shown).unwrap().to_string(),
            shown,
            "what is shown reads back"
        );
    }
}

#[test]
fn errors_say_how_it_is_written() {
    let cases = [
        ("", "describe a packet, for example: tcp 10.20.3.4 -> 8443"),
        (
            "tpc 10.0.0.1 -> 80",
            "\"tpc\" is no protocol; did you mean \"tcp\"?",
        ),
        (
            "carrier-pigeon 10.0.0.1",
            "\"carrier-pigeon\" is no protocol (tcp, udp, sctp, icmp",
        ),
        ("tcp 10.0.0.1", "to which port? write tcp 10.0.0.1 -> 8443"),
        ("tcp -> 80", "who sends it?"),
        ("tcp 80", "who sends it?"),
        ("tcp 10.0.0.1 -> 70000", "\"70000\" is no port (0 to 65535)"),
        (
            "tcp 10.0.0.1 -> http",
            "\"http\" is no address; names are not looked up",
        ),
        ("tcp 10.0.0.0/8 -> 80", "\"10.0.0.0/8\" is a prefix"),
        ("tcp 10.0.0.1 -> 2001:db8::1:80", "two families"),
        ("tcp 10.0.0.1 -> [2001:db8::1]80", "write [2001:db8::1]:8443"),
        (
            "tcp 10.0.0.1 -> 80 flags sin",
            "\"sin\" is no TCP flag; did you mean \"syn\"?",
        ),
        (
            "tcp 10.0.0.1 -> 80 flags",
            "flags such as syn,ack must follow \"flags\"",
        ),
        ("tcp 10.0.0.1 to", "a port or an address must follow \"to\""),
        ("udp 10.0.0.1 -> 80 flags syn", "only tcp has flags"),
        (
            "tcp 10.0.0.1 -> 80 flgas syn",
            "\"flgas\" is left over; did you mean \"flags\"?",
        ),
        ("tcp/80 10.0.0.1 -> 80", "the destination port is given twice"),
        (
            "tcp from 10.0.0.1 from 10.0.0.2 -> 80",
            "the source is given twice",
        ),
        (
            "icmp eco from 10.0.0.1",
            "\"eco\" is no ICMP type; did you mean \"echo\"?",
        ),
        ("icmp echo from 10.0.0.1 -> 80", "this protocol has no ports"),
        (
            "icmpv6 echo from 10.0.0.1",
            "10.0.0.1 does not speak icmpv6; write icmp",
        ),
        ("icmp packet-too-big from 10.0.0.1", "ICMP has no such message"),
        ("out tcp", "where does it go? a destination is missing"),
        ("out tcp from 10.0.0.1", "where does it go?"),
        ("out", "describe a packet"),
        (
            "out tcp -> 198.51.100.7",
            "to which port? write out tcp -> 198.51.100.7:443",
        ),
        (
            "out udp 2001:db8::53",
            "to which port? write out udp -> [2001:db8::53]:443",
        ),
        ("out udp from 10.0.0.9 to [2001:db8::53]:53", "two families"),
        ("proto gre from 10.0.0.1", "\"gre\" is no protocol number"),
        ("proto", "which protocol?"),
        ("proto 6 from 10.0.0.1", "protocol 6 is tcp: write tcp"),
        ("udp 10.0.0.1 -> 53 vlan 1,2,3", "more than two VLAN tags"),
        ("udp 10.0.0.1 -> 53 ttl 256", "\"256\" is no TTL or hop limit"),
        ("udp 10.0.0.1 -> 53 vlan 4095", "\"4095\" is no VLAN"),
    ];
    for (text, message) in cases {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn an_own_address_is_the_destination_when_none_is_given() {
    let spec = parse("tcp 10.20.3.4 -> 8443").unwrap();
    let own = ["2001:db8::9", "10.0.0.9", "10.0.0.7"].map(|text| text.parse::<IpAddr>().unwrap());
    assert_eq!(spec.own(own).to_string(), "10.0.0.7");
    assert_eq!(
        parse("tcp 10.20.3.4 -> 10.1.1.1:1").unwrap().own(own).to_string(),
        "10.1.1.1"
    );
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,40}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_words_panic(words in proptest::collection::vec(
        prop_oneof![
            Just("out"), Just("tcp"), Just("icmp"), Just("proto"), Just("from"), Just("->"), Just("10.0.0.1"), Just("[::1]:5"),
            Just("80"), Just("flags"), Just("syn"), Just("vlan"), Just("echo"), Just("code"), Just("8/0"), Just("47"),
        ], 0..8)) {
        let text = words.join(" ");
        if let Ok(spec) = parse(&text) {
            let shown = spec.to_string();
            prop_assert_eq!(parse(&shown).unwrap().to_string(), shown);
        }
    }
}

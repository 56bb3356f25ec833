//! The JSON schema of a policy file, for editors.
//!
//! Written by hand: the file is read from a tree with spans, not by `serde`, so there is nothing to derive from.
//! A schema checks shapes; that groups exist, ports have one owner and prefixes make sense only `ravelin check` knows.

use super::icmp;
use super::source::NAME_PATTERN;
use serde_json::{Value, json};

/// JSON Schema, draft 2020-12.
pub fn json_schema() -> Value {
    let names: Vec<&str> = icmp::TYPES.iter().map(|row| row.0).collect();
    let port = format!(
        "^((tcp|udp|sctp)/[1-9][0-9]{{0,4}}(-[1-9][0-9]{{0,4}})?|icmp(v4|v6)?/(0|[1-9][0-9]{{0,2}}|{})|proto/[1-9][0-9]{{0,2}})$",
        names.join("|")
    );
    let prefix = r"[0-9]{1,3}(\.[0-9]{1,3}){3}(/([1-9]|[12][0-9]|3[0-2]))?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(/[1-9][0-9]{0,2})?";
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ravelin policy",
        "description": "Which services of a node are open, and to whom, and what may leave it. What no service and no egress rule names follows the defaults.",
        "type": "object",
        "additionalProperties": false,
        "required": ["version"],
        "properties": {
            "version": { "const": 1, "description": "Version of the policy language." },
            "policy": {
                "description": "Makes the file a document of a fleet. On a node that reads it as its own file it changes nothing.",
                "type": "object",
                "additionalProperties": false,
                "required": ["name", "nodes"],
                "properties": {
                    "name": {
                        "description": "Unique in the fleet.",
                        "type": "string",
                        "pattern": format!("^{NAME_PATTERN}$")
                    },
                    "nodes": { "$ref": "#/$defs/selector" }
                }
            },
            "deny": {
                "description": "Sources that are denied on every port; beats every allow.",
                "type": "array",
                "items": { "$ref": "#/$defs/entry", "not": { "const": "any" } }
            },
            "defaults": {
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "ingress": {
                        "description": "What happens to packets that no service names.",
                        "enum": ["deny", "allow"],
                        "default": "deny"
                    },
                    "egress": {
                        "description": "What happens to packets that leave and that no egress rule names.",
                        "enum": ["deny", "allow"],
                        "default": "allow"
                    },
                    "limits": {
                        "description": "Limits of every service, key by key, where it says nothing else.",
                        "$ref": "#/$defs/limits"
                    }
                }
            },
            "groups": {
                "description": "Named sets of prefixes, written @name in lists. Groups nest.",
                "type": "object",
                "propertyNames": { "pattern": format!("^{NAME_PATTERN}$") },
                "additionalProperties": { "$ref": "#/$defs/group" }
            },
            "service": {
                "description": "Services, each beginning with [[service]].",
                "type": "array",
                "items": { "$ref": "#/$defs/service" }
            },
            "egress": {
                "description": "What may leave, each rule beginning with [[egress]].",
                "type": "array",
                "items": { "$ref": "#/$defs/egress" }
            }
        },
        "$defs": {
            "group": {
                "oneOf": [
                    {
                        "description": "Prefixes and other groups.",
                        "type": "array",
                        "items": { "type": "string", "pattern": format!("^(@{NAME_PATTERN}|{prefix})$") }
                    },
                    {
                        "description": "A list file: one prefix a line, # begins a comment.",
                        "type": "object",
                        "additionalProperties": false,
                        "required": ["file"],
                        "properties": {
                            "file": {
                                "description": "Relative to the folder of the policy file.",
                                "type": "string",
                                "minLength": 1
                            }
                        }
                    },
                    {
                        "description": "The addresses of the nodes that a selector names, as they register.",
                        "type": "object",
                        "additionalProperties": false,
                        "required": ["nodes"],
                        "properties": {
                            "nodes": { "$ref": "#/$defs/selector" },
                            "within": {
                                "description": "Prefixes that the addresses have to lie in; others do not count.",
                                "type": "array",
                                "minItems": 1,
                                "items": { "type": "string", "pattern": format!("^({prefix})$") }
                            }
                        }
                    }
                ]
            },
            "selector": {
                "description": "Nodes by their labels; all conditions hold. \"*\" is every node.",
                "type": "string",
                "pattern": selector(),
                "examples": ["*", "role=payments, zone!=eu-1", "zone in (eu-1, eu-2), !canary", "name=web-1"]
            },
            "service": {
                "type": "object",
                "additionalProperties": false,
                "required": ["name", "ports"],
                "properties": {
                    "name": {
                        "description": "Unique among services and egress rules; a label of metrics.",
                        "type": "string",
                        "pattern": format!("^{NAME_PATTERN}$")
                    },
                    "ports": {
                        "description": "Each port belongs to one service only.",
                        "type": "array",
                        "minItems": 1,
                        "items": { "$ref": "#/$defs/port" }
                    },
                    "allow": {
                        "description": "Who may use the service. Missing or empty: nobody. Everybody is \"any\".",
                        "type": "array",
                        "items": { "$ref": "#/$defs/entry" }
                    },
                    "deny": {
                        "description": "Who may not, whatever allow says.",
                        "type": "array",
                        "items": { "$ref": "#/$defs/entry" }
                    },
                    "limits": { "$ref": "#/$defs/limits" },
                    "limit": {
                        "description": "Limits for some of its sources, each beginning with [[service.limit]].",
                        "type": "array",
                        "items": { "$ref": "#/$defs/limit" }
                    }
                }
            },
            "limits": {
                "description": "What the service bears.",
                "type": "object",
                "additionalProperties": false,
                "properties": limits("source", json!({
                    "description": "Bits of an address that make one source.",
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "v4": { "type": "integer", "minimum": 8, "maximum": 32, "default": 32 },
                        "v6": { "type": "integer", "minimum": 16, "maximum": 128, "default": 64 }
                    }
                }))
            },
            "limit": {
                "description": "Whom it is for, and what the service bears of them.",
                "type": "object",
                "additionalProperties": false,
                "required": ["for"],
                "properties": limits("for", json!({
                    "description": "Whom the limit is for: a group, an address, a prefix, or a list of them.",
                    "anyOf": [
                        { "$ref": "#/$defs/limited" },
                        { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/limited" } }
                    ]
                }))
            },
            "limited": { "type": "string", "pattern": format!("^(@{NAME_PATTERN}|{prefix})$") },
            "count_rates": rates("#/$defs/count_rate", json!({ "$ref": "#/$defs/count" })),
            "byte_rates": rates("#/$defs/byte_rate", json!({ "$ref": "#/$defs/size" })),
            "count_rate": {
                "description": "A number, also with k, M or G, in a second, minute or hour. \"unlimited\" takes a default away.",
                "type": "string",
                "pattern": format!("^(unlimited|{NUMBER}[kMG]?/{TIME})$"),
                "examples": ["50/s", "20k/s", "600/min"]
            },
            "byte_rate": {
                "description": "A size in a second, minute or hour. \"unlimited\" takes a default away.",
                "type": "string",
                "pattern": format!("^(unlimited|{NUMBER}{SIZE}/{TIME})$"),
                "examples": ["100MB/s", "64KiB/s", "1Gbit/s"]
            },
            "count": {
                "description": "A number, as a text also with k, M or G.",
                "anyOf": [
                    { "type": "integer", "minimum": 1 },
                    { "type": "string", "pattern": format!("^{NUMBER}[kMG]?$") }
                ]
            },
            "size": {
                "description": "A size in bytes.",
                "type": "string",
                "pattern": format!("^{NUMBER}{SIZE}$"),
                "examples": ["64KiB", "100MB"]
            },
            "connections": {
                "anyOf": [{ "const": "unlimited" }, { "$ref": "#/$defs/count" }]
            },
            "egress": {
                "type": "object",
                "additionalProperties": false,
                "required": ["name"],
                "properties": {
                    "name": {
                        "description": "Unique among services and egress rules; a label of metrics.",
                        "type": "string",
                        "pattern": format!("^{NAME_PATTERN}$")
                    },
                    "to": {
                        "description": "Destinations that the rule opens. Everywhere is \"any\".",
                        "type": "array",
                        "items": { "$ref": "#/$defs/entry" }
                    },
                    "ports": {
                        "description": "Destination ports and protocols. Missing: every one. Rules may share ports.",
                        "type": "array",
                        "minItems": 1,
                        "items": { "$ref": "#/$defs/port" }
                    },
                    "deny": {
                        "description": "Destinations that nothing reaches at these ports, whatever any rule opens.",
                        "type": "array",
                        "items": { "$ref": "#/$defs/entry" }
                    }
                }
            },
            "port": {
                "description": "tcp, udp or sctp with a port or a range; icmp with a name (both families) or a number (ICMPv4), icmpv4 and icmpv6 for one family; proto with the number of an IP protocol.",
                "type": "string",
                "pattern": port,
                "examples": ["tcp/8443", "udp/30000-30010", "icmp/echo", "icmpv6/128", "proto/47"]
            },
            "source": {
                "description": "any, @group, an address or a prefix.",
                "type": "string",
                "pattern": format!("^(any|@{NAME_PATTERN}|{prefix})$"),
                "examples": ["any", "@office", "198.51.100.7", "2001:db8:10::/48"]
            },
            "entry": {
                "anyOf": [
                    { "$ref": "#/$defs/source" },
                    {
                        "description": "A temporary entry: it ends by itself.",
                        "type": "object",
                        "additionalProperties": false,
                        "required": ["source", "until"],
                        "properties": {
                            "source": { "$ref": "#/$defs/source" },
                            "until": {
                                "description": "Date, time and offset: 2026-11-22T05:00:00Z.",
                                "type": "string",
                                "format": "date-time"
                            }
                        }
                    }
                ]
            }
        }
    })
}

/// As [`crate::fleet::selector`] reads them; which labels there are only the fleet knows.
fn selector() -> String {
    let key = "[A-Za-z0-9][A-Za-z0-9._/-]{0,62}";
    let value = "[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,252}";
    let values = format!(r"\( *{value} *(, *{value} *)*\)");
    let condition = format!("(! *{key}|{key}( *(==?|!=) *{value}| +(in|notin|not +in) *{values})?)");
    format!(r"^ *(\*|{condition} *(, *{condition} *)*) *$")
}

const NUMBER: &str = r"[0-9]{1,18}(\.[0-9]{1,3})?";
const SIZE: &str = "(B|kB|MB|GB|KiB|MiB|GiB|kbit|Mbit|Gbit)";
const TIME: &str = "(s|min|h)";

/// The keys of a table of limits, and the one that only this table has.
fn limits(own_key: &str, own: Value) -> Value {
    let mut keys = json!({
        "new_connections": {
            "description": "New TCP connections.",
            "anyOf": [{ "const": "unlimited" }, { "$ref": "#/$defs/count_rates" }]
        },
        "packets": { "anyOf": [{ "const": "unlimited" }, { "$ref": "#/$defs/count_rates" }] },
        "bytes": {
            "description": "Bytes of whole frames.",
            "anyOf": [{ "const": "unlimited" }, { "$ref": "#/$defs/byte_rates" }]
        },
        "connections": {
            "description": "TCP connections that are established at the same time.",
            "anyOf": [
                { "const": "unlimited" },
                {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "per_source": { "$ref": "#/$defs/connections" },
                        "total": { "$ref": "#/$defs/connections" }
                    }
                }
            ]
        },
        "on_excess": {
            "description": "What becomes of what exceeds a limit: drop; challenge: new connections prove their address by a SYN cookie; ban: the same, and who has proven it and still opens too much is shut out for a time.",
            "type": "string",
            "pattern": "^(drop|challenge|ban +([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?)$",
            "default": "drop",
            "examples": ["drop", "challenge", "ban 10m"]
        }
    });
    keys[own_key] = own;
    keys
}

fn rates(rate: &str, burst: Value) -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "per_source": { "description": "Of one source.", "$ref": rate },
            "burst": { "description": "What one source may send at once; if missing, what comes in one second.", "anyOf": [burst] },
            "total": { "description": "Of all sources together.", "$ref": rate },
            "total_burst": { "description": "What all may send at once; if missing, what comes in one second.", "anyOf": [burst] }
        }
    })
}

#[cfg(test)]
mod tests;

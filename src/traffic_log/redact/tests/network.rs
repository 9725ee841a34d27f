//! E-mail addresses and network addresses.

use super::{RedactionRule, replaced_exactly};

#[test]
fn addresses_of_people_are_found() {
    let rows = [
        "ann.lee+x@mail.example.org",
        "Ann_Lee%x@sub.domain.example.co.uk",
        "o'neill@example.ie",
        "jörg@münchen.example",
        "иван@пример.рф",
        "用户@例子.公司",
        "ann@xn--mnchen-3ya.example",
        "ann@example.xn--p1ai",
        "ＡＮＮ＠ＥＸＡＭＰＬＥ．ＯＲＧ",
        "ann\u{200b}@example.org",
        "\"ann lee\"@example.org",
        "ann@[192.168.0.1]",
        "ann@[IPv6:2001:db8::1]",
        "a@b.co",
        "123456@qq.com",
        "ann%40example.org",
        "ann [at] example [dot] org",
        "ann(at)example.org",
        "ann@example[.]org",
        "ann at example dot com",
        "ann&#64;example.org",
    ];
    let surroundings = [
        ("", ""),
        ("Mail ", ", please"),
        ("<", ">"),
        ("mailto:", "?subject=x"),
        ("(", ")."),
        ("to:", ";"),
    ];
    for (front, behind) in surroundings {
        replaced_exactly(
            &[RedactionRule::Email],
            rows.map(|row| (front, row, behind)),
        );
    }
    replaced_exactly(
        &[RedactionRule::Email],
        [
            ("联系", "ann@example.org", "谢谢"),
            ("メール：", "ann@example.org", "。"),
            ("", "ann at example.org", ""),
            ("mail ", "ann at example.org", " please"),
            ("write to ", "ann.lee at example.org", ""),
            ("", "ann @ example . org", ""),
            ("", "ann @ example.org", ""),
            ("", "ann<at>example<dot>org", ""),
            ("", "ann [@] example [.] org", ""),
            ("", "ann arroba example punto es", ""),
            ("", "ann arobase example point fr", ""),
            ("", "ann chiocciola example punto it", ""),
            ("", "ann (at) example (punkt) de", ""),
            ("", "ann at example dot co dot uk", ""),
        ],
    );
}

#[test]
fn addresses_of_machines_are_found() {
    let rows = [
        "192.168.17.4",
        "8.8.4.4",
        "203.0.113.255",
        "１９２．１６８．１７．４",
        "2001:db8::8a2e:370:7334",
        "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
        "2001:DB8::1",
        "fe80::1",
        "fe80::1%eth0",
        "fe80::1ff:fe23:4567:890a%en0",
        "fd12:3456:789a::1",
        "::ffff:192.0.2.128",
        "64:ff9b::192.0.2.33",
    ];
    let surroundings = [
        ("", ""),
        ("from ", " today"),
        ("http://[", "]:8080/"),
        ("at ", "."),
        ("host ", ", port 1"),
        ("(", ")"),
        ("ip=", ";"),
    ];
    for (front, behind) in surroundings {
        replaced_exactly(&[RedactionRule::Ip], rows.map(|row| (front, row, behind)));
    }
    replaced_exactly(
        &[RedactionRule::Ip],
        [
            ("from ", "192.168.17.4", ":80"),
            ("net ", "10.1.2.0", "/24"),
            ("http://", "10.1.2.3", "/x"),
            ("", "203[.]0[.]113[.]9", ""),
            ("hxxp://", "203(.)0(.)113(.)9", "/x"),
            ("", "203[dot]0[dot]113[dot]9", ""),
            ("", "203.0[.]113.9", ""),
            ("", "203.0.113.009", ""),
            ("", "010.001.002.003", ""),
            ("ip-", "203-0-113-9", ".ec2.internal"),
            ("ec2-", "203-0-113-9", ".compute-1.amazonaws.com"),
            ("host ip_", "203_0_113_9", ""),
            ("static.", "203-0-113-9", ".example.net"),
        ],
    );
}

#[test]
fn hardware_addresses_are_found() {
    let rows = [
        "00:1B:44:11:3A:B7",
        "00-1b-44-11-3a-b7",
        "001b.4411.3ab7",
        "01:23:45:67:89:ab:cd:ef",
        "00:00:5e:00:53:01",
        "12-34-56-78-90-12",
        "００:１B:４４:１１:３A:B７",
    ];
    for (front, behind) in [
        ("", ""),
        ("MAC ", " is mine"),
        ("mac=", ","),
        ("(", ")"),
        ("HWaddr ", "."),
    ] {
        replaced_exactly(&[RedactionRule::Mac], rows.map(|row| (front, row, behind)));
    }
    replaced_exactly(
        &[RedactionRule::Mac],
        [
            ("", "00 1B 44 11 3A B7", ""),
            ("at ", "00.1b.44.11.3a.b7", ""),
            ("MAC ", "001b44113ab7", ""),
            ("MAC address: ", "001B44113AB7", "."),
            ("bssid=", "001b44-113ab7", ""),
            ("hwaddr ", "001b-4411-3ab7", ""),
        ],
    );
}

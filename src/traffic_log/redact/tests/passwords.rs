//! Passwords on command lines.

use super::{RedactionRule, replaced_exactly, rules};

#[test]
fn passwords_on_command_lines_are_found() {
    replaced_exactly(
        &[RedactionRule::Secret],
        [
            ("curl -u", "ann:hunter2", " https://host.example"),
            ("curl -s -u'", "ann:hunter2", "' https://host.example"),
            ("curl -U ", "ann:hunter2", " https://host.example"),
            ("mysql -uroot -p", "hunter2", " db"),
            ("$ mysql -u root -p'", "hunter2", "' db"),
            ("mysqldump -p", "hunter2", " --all-databases"),
            ("sshpass -p ", "hunter2", " ssh x"),
            ("sshpass -p", "hunter2", " ssh x"),
            ("sshpass -p \"", "hunter 2", "\" ssh x"),
            ("redis-cli -h x -a ", "hunter2", " ping"),
            ("docker login -u ann -p ", "hunter2", " registry.example"),
            ("docker login -u=ann -p=", "hunter2", ""),
            ("mongosh -u ann -p ", "hunter2", ""),
            ("sqlcmd -S x -U sa -P ", "hunter2", ""),
            ("unzip -P ", "hunter2", " a.zip"),
            ("7z x -p", "hunter2", " a.7z"),
            ("ldapsearch -D x -w ", "hunter2", " -b y"),
            ("keytool -list -storepass ", "hunter2", ""),
            ("openssl rsa -passin pass:", "hunter2", " -in k"),
            ("xfreerdp /u:ann /p:", "hunter2", " /v:x"),
        ],
    );
}

#[test]
fn command_lines_without_passwords_stay() {
    for text in [
        "mysql -u root -p",
        "mysql -p -h db.internal",
        "mysql -p$PASSWORD db",
        "sshpass -p $PASS ssh x",
        "sshpass -p <password> ssh x",
        "redis-cli -p 6379 ping",
        "docker login -u ann -p ${TOKEN}",
        "docker run -p 8080:80 -u 1000:1000 mysql",
        "curl -u ann https://host.example",
        "curl -o out.txt https://host.example/a:b",
        "ssh -p 2222 host.example",
        "the mysql client reads -p from its terminal",
    ] {
        assert_eq!(rules().apply(text), None, "{text}");
    }
}

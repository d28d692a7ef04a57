use super::*;

fn counts(passed: u64, failed: u64, skipped: u64, failing: &[&str]) -> TestCounts {
    TestCounts {
        passed,
        failed,
        skipped,
        failing: failing.iter().map(|name| name.to_string()).collect(),
    }
}

#[test]
fn pytest() {
    let xml = br#"<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="1" skipped="2" tests="5" time="0.074" timestamp="2026-07-01T10:00:00.123456+00:00" hostname="freebsd">
<testcase classname="tests.test_parse.TestDates" name="test_leap[2024-True]" time="0.001" />
<testcase classname="tests.test_parse" name="test_fails" time="0.002"><failure message="AssertionError: assert 1 == 2&#10;  +  where 1 = f()">def test_fails():
&gt;       assert 1 == 2
E       assert 1 == 2</failure></testcase>
<testcase classname="tests.test_parse" name="test_skip" time="0.000"><skipped type="pytest.skip" message="no network">/w/tests/test_parse.py:9: no network</skipped></testcase>
<testcase classname="tests.test_parse" name="test_xfail" time="0.000"><skipped type="pytest.xfail" message="bug 12" /></testcase>
<testcase classname="" name="tests.test_broken" time="0.000"><error message="collection failure">ImportError: No module named 'missing'</error></testcase>
</testsuite></testsuites>"#;
    let expected = counts(
        1,
        2,
        2,
        &["tests.test_parse::test_fails", "tests.test_broken"],
    );
    assert_eq!(parse(xml).unwrap(), expected);
}

#[test]
fn cargo_nextest() {
    let xml = br#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="4" failures="1" errors="0" uuid="45c50042-482e-477e-88d2-60cfcc3eaf95" timestamp="2026-07-01T10:00:00.023+00:00" time="0.054">
    <testsuite name="nextest-tests::basic" tests="3" disabled="0" errors="0" failures="1">
        <testcase name="module::test_cargo_env_vars" classname="nextest-tests::basic" timestamp="2026-07-01T10:00:00.023+00:00" time="0.034">
            <system-out>running 1 test
&lt;failure&gt; is only printed here</system-out>
        </testcase>
        <testcase name="test_failure_assert" classname="nextest-tests::basic" time="0.009">
            <failure message="thread &apos;test_failure_assert&apos; panicked at tests/basic.rs:11:5" type="test failure with exit code 101">panicked</failure>
            <rerunFailure timestamp="2026-07-01T10:00:00.023+00:00" time="0.009" type="test failure with exit code 101"><system-err>again</system-err></rerunFailure>
        </testcase>
        <testcase name="test_flaky" classname="nextest-tests::basic" time="0.010">
            <flakyFailure timestamp="2026-07-01T10:00:00.023+00:00" time="0.011" type="test failure with exit code 101"><system-out/></flakyFailure>
        </testcase>
    </testsuite>
    <testsuite name="nextest-tests" tests="1" disabled="0" errors="0" failures="0">
        <testcase name="tests::unit" classname="nextest-tests" time="0.004"/>
    </testsuite>
</testsuites>"#;
    let expected = counts(3, 1, 0, &["nextest-tests::basic::test_failure_assert"]);
    assert_eq!(parse(xml).unwrap(), expected);
}

#[test]
fn surefire() {
    // A thousands separator in `time` is what older versions write under some locales.
    let xml = br#"<?xml version="1.0" encoding="UTF-8"?>
<testsuite xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="https://maven.apache.org/surefire/maven-surefire-plugin/xsd/surefire-test-report.xsd" version="3.0" name="org.example.AppTest" time="1,234.567" tests="4" errors="1" skipped="1" failures="1">
  <properties><property name="java.version" value="21"/><property name="failure" value="&lt;x&gt;"/></properties>
  <testcase name="ok" classname="org.example.AppTest" time="1,230.1"/>
  <testcase name="bad" classname="org.example.AppTest" time="0.01">
    <failure message="expected:&lt;1&gt; but was:&lt;2&gt;" type="org.opentest4j.AssertionFailedError"><![CDATA[org.opentest4j.AssertionFailedError: <testcase name="no"/>
	at org.example.AppTest.bad(AppTest.java:12)]]></failure>
    <system-out><![CDATA[output]]></system-out>
  </testcase>
  <testcase name="worse" classname="org.example.AppTest" time="0"><error type="java.lang.NullPointerException">java.lang.NullPointerException</error></testcase>
  <testcase name="later" classname="org.example.AppTest" time="0"><skipped message="not yet"/></testcase>
</testsuite>"#;
    let expected = counts(
        1,
        2,
        1,
        &["org.example.AppTest::bad", "org.example.AppTest::worse"],
    );
    assert_eq!(parse(xml).unwrap(), expected);
}

#[test]
fn gtest() {
    let xml = br#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="4" failures="1" disabled="1" errors="0" time="0.011" timestamp="2026-07-01T10:00:00.123" name="AllTests">
  <testsuite name="Math" tests="4" failures="1" disabled="1" skipped="1" errors="0" time="0.01" timestamp="2026-07-01T10:00:00.123">
    <testcase name="Adds" file="m.cc" line="5" status="run" result="completed" time="0." classname="Math" />
    <testcase name="Divides" file="m.cc" line="9" status="run" result="completed" time="0.002" classname="Math">
      <failure message="m.cc:10&#x0A;Expected equality of these values:&#x0A;  1&#x0A;  2" type=""><![CDATA[m.cc:10]]></failure>
      <failure message="m.cc:11&#x0A;Failed" type=""><![CDATA[m.cc:11]]></failure>
    </testcase>
    <testcase name="DISABLED_Roots" file="m.cc" line="20" status="notrun" result="suppressed" time="0." classname="Math" />
    <testcase name="Sines" file="m.cc" line="30" status="run" result="skipped" time="0." classname="Math">
      <skipped message="m.cc:31&#x0A;no FPU"><![CDATA[m.cc:31]]></skipped>
    </testcase>
  </testsuite>
</testsuites>"#;
    assert_eq!(parse(xml).unwrap(), counts(1, 1, 2, &["Math::Divides"]));
}

#[test]
fn ctest() {
    let xml = br#"<?xml version="1.0" encoding="UTF-8"?>
<testsuite name="Linux-c++" tests="4" failures="1" disabled="1" skipped="1" hostname="" time="2" timestamp="2026-07-01T10:00:00">
	<testcase name="unit" classname="unit" time="0.003" status="run"><properties/><system-out>ok</system-out></testcase>
	<testcase name="fuzz" classname="fuzz" time="0.9" status="fail"><failure message="Failed"/><properties/><system-out>boom \x1b[31m</system-out></testcase>
	<testcase name="gpu" classname="gpu" time="0" status="disabled"><skipped message="Disabled"/></testcase>
	<testcase name="slow" classname="slow" time="0" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/></testcase>
</testsuite>"#;
    assert_eq!(parse(xml).unwrap(), counts(1, 1, 2, &["fuzz"]));
}

#[test]
fn suites_inside_suites_and_a_suite_that_fails_as_a_whole() {
    let xml = br#"<testsuites><testsuite name="outer"><testsuite name="inner"><testcase name="a"/></testsuite>
        <testsuite name="broken"><error message="setUpClass"/></testsuite><testcase name="b"/></testsuite><testsuite name="empty"/></testsuites>"#;
    assert_eq!(parse(xml).unwrap(), counts(2, 1, 0, &["broken (suite)"]));
}

#[test]
fn other_encodings_are_read_as_far_as_they_matter() {
    let xml = "<testsuite><testcase name='grün'><failure/></testcase></testsuite>";
    let expected = counts(0, 1, 0, &["grün"]);
    let mut bom = vec![0xEF, 0xBB, 0xBF];
    bom.extend_from_slice(xml.as_bytes());
    assert_eq!(parse(&bom).unwrap(), expected);
    let mut utf_16 = vec![0xFF, 0xFE];
    utf_16.extend(xml.encode_utf16().flat_map(u16::to_le_bytes));
    assert_eq!(parse(&utf_16).unwrap(), expected);
    let latin_1 = b"<?xml version='1.0' encoding='iso-8859-1'?><testsuite><testcase name='gr\xFCn'><failure/></testcase></testsuite>";
    assert_eq!(parse(latin_1).unwrap(), counts(0, 1, 0, &["gr\u{FFFD}n"]));
}

#[test]
fn what_is_no_report_is_refused_with_a_sentence() {
    assert!(matches!(parse(b""), Err(ReportError::Empty)));
    assert!(matches!(parse(b"  \n "), Err(ReportError::Empty)));
    assert!(matches!(parse(b"plain text"), Err(ReportError::Empty)));
    assert!(
        matches!(parse(b"<html><body/></html>"), Err(ReportError::NotJunit { root }) if root == "html")
    );
    assert!(matches!(
        parse(b"<testsuite><testcase name='a'/>"),
        Err(ReportError::Truncated)
    ));
    assert!(matches!(
        parse(b"<testsuite></testcase>"),
        Err(ReportError::Xml { .. })
    ));
    assert!(matches!(
        parse(b"<testsuite><testcase name='a"),
        Err(ReportError::Xml { .. })
    ));
    let large = vec![b' '; MOST_REPORT_BYTES + 1];
    assert!(matches!(parse(&large), Err(ReportError::TooLarge { .. })));
}

#[test]
fn a_bomb_of_entities_stays_small() {
    let mut xml = String::from("<!DOCTYPE testsuite [<!ENTITY a0 \"lol\">");
    for i in 1..40 {
        let before = i - 1;
        xml.push_str(&format!(
            "<!ENTITY a{i} \"&a{before};&a{before};&a{before};&a{before};\">"
        ));
    }
    xml.push_str(
        "]><testsuite><testcase name=\"&a39;\"><failure>&a39;</failure></testcase></testsuite>",
    );
    assert_eq!(parse(xml.as_bytes()).unwrap(), counts(0, 1, 0, &["&a39;"]));
}

#[test]
fn a_deep_or_wide_report_is_only_large() {
    let depth = 1_000_000;
    let mut deep = "<testsuite>".repeat(depth);
    deep.push_str("<testcase name='a'/>");
    deep.push_str(&"</testsuite>".repeat(depth));
    assert_eq!(parse(deep.as_bytes()).unwrap(), counts(1, 0, 0, &[]));
    let mut wide = String::from("<testsuite><testcase ");
    for i in 0..300_000 {
        wide.push_str(&format!("a{i}='' "));
    }
    wide.push_str("name='a'/></testsuite>");
    assert_eq!(parse(wide.as_bytes()).unwrap(), counts(1, 0, 0, &[]));
}

#[test]
fn failing_names_are_few_and_short() {
    let long = "n".repeat(5000);
    let case = format!("<testcase name='{long}'><failure/></testcase>");
    let xml = format!("<testsuite>{}</testsuite>", case.repeat(80));
    let one = parse(xml.as_bytes()).unwrap();
    assert_eq!(one.failed, 80);
    assert_eq!(one.failing.len(), MOST_FAILING);
    assert!(
        one.failing
            .iter()
            .all(|name| name.chars().count() == MOST_NAME && name.ends_with('…'))
    );
    let merged = merge([counts(1, 1, 2, &["first"]), one, counts(5, 0, 0, &[])]);
    assert_eq!((merged.passed, merged.failed, merged.skipped), (6, 81, 2));
    assert_eq!(merged.failing.len(), MOST_FAILING);
    assert_eq!(merged.failing[0], "first");
}

proptest::proptest! {
    #[test]
    fn no_bytes_do_harm(xml in "[<>/a \"'=!&;\\[\\]?-]{0,60}|(<testsuite>|<testcase|<failure/>|</testcase>|/>| name='x'){0,12}") {
        let result = parse(xml.as_bytes());
        if let Err(error) = result {
            proptest::prop_assert!(!error.to_string().is_empty());
        }
    }
}

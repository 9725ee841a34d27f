//! Government-issued numbers of persons, by country.

use super::{RedactionRule, replaced_everywhere, replaced_exactly, rules};

/// Country and numbers, in forms that count anywhere. The numbers are published examples, or accepted by another implementation of the
/// checks (python-stdnum 2.2).
const OPEN: &[(&str, &[&str])] = &[
    (
        "US SSN",
        &[
            "078-05-1120",
            "526-01-8159",
            "083 01 6613",
            "526.01.8159",
            "526\u{2013}01\u{2013}8159",
            "526\u{a0}01\u{a0}8159",
            "５２６-０１-８１５９",
        ],
    ),
    ("US ITIN", &["937-86-5797", "972-99-7528"]),
    ("US MBI", &["1EG4-TE5-MK73", "1EG4TE5MK73"]),
    ("CA SIN", &["046 454 286", "783-757-628", "322 817 180"]),
    (
        "MX CURP",
        &[
            "HEGG560427MVZRRL04",
            "MMHJ700812HNLCCC02",
            "hegg560427mvzrrl04",
        ],
    ),
    (
        "MX RFC",
        &["GODE561231GR8", "GODE 561231 GR8", "GODE671012NA5"],
    ),
    (
        "BR CPF",
        &[
            "123.456.789-09",
            "12345678909",
            "360.848.529-55",
            "51131154444",
        ],
    ),
    (
        "BR CNPJ",
        &[
            "12.ABC.345/01DE-35",
            "11.222.333/0001-81",
            "11222333000181",
            "23.953.516/0001-56",
        ],
    ),
    ("AR CUIT", &["20-12345678-6", "20-30326822-8"]),
    ("CL RUT", &["12345678-5", "12.345.678-5", "19.463.018-2"]),
    (
        "GB NINO",
        &[
            "AB123456C",
            "AB 12 34 56 C",
            "ab123456c",
            "AB-12-34-56-C",
            "QQ 12 34 56 C",
        ],
    ),
    ("GB NHS", &["943 476 5919", "396-855-6968"]),
    (
        "GB driving licence",
        &["MORGA657054SM9IJ", "MORGA 657054 SM9IJ"],
    ),
    ("IE PPS", &["1234567T", "1234567FA", "3673554E"]),
    (
        "DE Steuer-ID",
        &[
            "86095742719",
            "65 929 970 489",
            "47036892816",
            "45836207880",
        ],
    ),
    (
        "DE Sozialversicherung",
        &["15070649C103", "15 070649 C 103"],
    ),
    ("DE Personalausweis", &["T220001293", "L01X00T471"]),
    (
        "FR NIR",
        &[
            "2 55 08 14 168 025 38",
            "255081416802538",
            "1 55 08 2A 168 025 50",
            "182037515512346",
            "2-55-08-14-168-025-38",
        ],
    ),
    (
        "IT codice fiscale",
        &[
            "RSSMRA85T10A562S",
            "rssmra85t10a562s",
            "RSSMRP56A07H501A",
            "RSS MRA 85T10 A562S",
        ],
    ),
    (
        "ES DNI",
        &[
            "M1234567L",
            "20530901-C",
            "12345678Z",
            "12345678-Z",
            "12.345.678-Z",
            "20530901c",
        ],
    ),
    (
        "ES NIE",
        &["X1234567L", "X-1234567-L", "X-1.234.567-L", "X3629527N"],
    ),
    ("ES NSS", &["28/12345678/40"]),
    (
        "PT CC",
        &["00000000 0 ZZ4", "73882137 0 AO0", "738821370AO0"],
    ),
    ("NL BSN", &["1112.22.333"]),
    (
        "BE rijksregister",
        &["85.07.30-033.28", "85073003328", "57040656592"],
    ),
    ("LU matricule", &["1985073012341"]),
    (
        "CH AHV",
        &[
            "756.9217.0769.85",
            "7569217076985",
            "756 9217 0769 85",
            "756.7462.7017.68",
        ],
    ),
    ("AT SVNR", &["1237 010180", "2866-021274"]),
    (
        "SE personnummer",
        &[
            "811218 9876",
            "680216 6253",
            "811218-9876",
            "19811218-9876",
            "811218+9876",
            "198112189876",
            "680216-6253",
        ],
    ),
    ("NO fødselsnummer", &["15039903358", "010781 69687"]),
    ("DK CPR", &["211062-5629", "201286-0982"]),
    ("IS kennitala", &["120174-3399"]),
    (
        "FI henkilötunnus",
        &["131052-308T", "010253-480D", "131052A308T"],
    ),
    (
        "PL PESEL",
        &["440514-01359", "440514 01359", "44051401359", "74040560251"],
    ),
    ("PL NIP", &["123-456-32-18", "123-45-63-218"]),
    ("PL dowód", &["ABA300000"]),
    (
        "CZ rodné číslo",
        &["736028/5163", "780123/3540", "500508/5514"],
    ),
    ("HU személyi", &["1-850730-1234"]),
    (
        "RO CNP",
        &[
            "1 800101 22114 4",
            "1-630615-12345-7",
            "1630615123457",
            "1211114122031",
        ],
    ),
    ("GR AMKA", &["16115356483", "24056335896"]),
    ("RS JMBG", &["0101006500006"]),
    ("EE isikukood", &["37605030299", "35204118595"]),
    ("LT asmens kodas", &["33309240064"]),
    ("LV personas kods", &["161175-19997"]),
    ("RU SNILS", &["11223344595", "112-233-445 95"]),
    ("RU INN", &["640392028479"]),
    ("TR TCKN", &["10000000146", "52545047002"]),
    ("IN Aadhaar", &["2341 2341 2346", "3015-7316-6877"]),
    ("IN PAN", &["ABCPE1234F", "RMEPD1293H"]),
    ("IN GSTIN", &["27AAPFU0939F1ZV"]),
    (
        "CN resident id",
        &[
            "11010519491231002X",
            "110105 19491231 002X",
            "11010519491231002x",
        ],
    ),
    (
        "TW id",
        &["a-123456789", "A 123456789", "a123456789", "A123456789"],
    ),
    (
        "HK id",
        &["A1234563", "a1234563", "A123456(3)", "G123456(A)"],
    ),
    (
        "KR RRN",
        &["9710139019902", "900101-1234567", "620223-1968865"],
    ),
    ("JP My Number", &["8715 1901 7114", "2573-5137-7934"]),
    (
        "SG NRIC",
        &["S 1234567 D", "S-1234567-D", "s1234567d", "S1234567D"],
    ),
    (
        "TH id",
        &["1234545678781", "1 2345 45678 78 1", "1-8452-70979-24-2"],
    ),
    ("MY MyKad", &["770305-02-1234"]),
    ("PK CNIC", &["34201-0891231-8"]),
    ("LK NIC", &["853400937V"]),
    ("AE Emirates ID", &["784-1979-1234567-1", "784197912345671"]),
    ("AU TFN", &["123 456 782", "810-614-890"]),
    ("AU Medicare", &["2123 45670 1"]),
    ("AU ABN", &["51 824 753 556"]),
    (
        "ZA id",
        &["8001015009087", "800101 5009 087", "6510235315084"],
    ),
];

/// The text before a number and the number, if only the text identifies it.
const ANNOUNCED: &[(&str, &str)] = &[
    ("SSN: ", "078051120"),
    ("my social security number is ", "526018159"),
    ("EIN ", "12-3456789"),
    ("SIN ", "783757628"),
    ("NSS: ", "12345678903"),
    ("RG ", "12.345.678-9"),
    ("DNI ", "12.345.678"),
    ("DNI: ", "12345678"),
    ("RUT ", "12345678-5"),
    ("cédula ", "1.234.567.890"),
    ("cédula: ", "1712345675"),
    ("NHS number ", "9434765919"),
    ("UTR ", "1234567890"),
    ("Steuernummer ", "21/815/08150"),
    ("Steuernummer: ", "151/815/08156"),
    ("Krankenversichertennummer ", "A123456780"),
    ("Personalausweis: ", "L01X00T47"),
    ("numéro fiscal : ", "30 23 217 600 053"),
    ("sécurité sociale: ", "2 55 08 14 168 025"),
    ("Partita IVA ", "41865600161"),
    ("NIF ", "123456789"),
    ("NIF: ", "246 274 662"),
    ("BSN: ", "111222333"),
    ("BSN ", "111.222.333"),
    ("SSN ", "536 - 90 - 4399"),
    ("SSN=", "536/90/4399"),
    ("SSN is ", "5 3 6 9 0 4 3 9 9"),
    ("rut ", "12 345 678 - 5"),
    ("CNPJ ", "12ABC34501DE35"),
    ("CIF ", "A58818501"),
    ("CIF: ", "A-58818501"),
    ("NIF ", "M1234567L"),
    ("CNP ", "1 8001 0122 1144"),
    ("Iqama ", "2123456789"),
    ("Burgerservicenummer ", "248379732"),
    ("SVNR ", "1237010180"),
    ("personnummer: ", "8112189876"),
    ("CPR-nr. ", "2110625629"),
    ("NIP: ", "1234563218"),
    ("dowód osobisty ", "ABA 300000"),
    ("rodné číslo ", "7801233540"),
    ("TAJ: ", "123 456 788"),
    ("ЕГН ", "7523169263"),
    ("ΑΦΜ ", "145530570"),
    ("OIB: ", "33392005961"),
    ("ИНН ", "7707083893"),
    ("СНИЛС ", "11223344595"),
    ("РНОКПП ", "1759013776"),
    ("Aadhaar ", "234123412346"),
    ("voter id ", "ABC1234567"),
    ("HKID ", "A1234563"),
    ("주민등록번호: ", "9001011234567"),
    ("マイナンバーは", "871519017114"),
    ("Thai ID ", "1845270979242"),
    ("NRIC: ", "770305021234"),
    ("NIK: ", "3174012707676229"),
    ("SSS ", "34-1234567-8"),
    ("CCCD ", "001099012345"),
    ("CNIC ", "3420108912318"),
    ("Teudat Zehut ", "541722112"),
    ("Iqama ", "2000000006"),
    ("code melli ", "0499370899"),
    ("ИИН ", "850730300123"),
    ("TFN ", "123456782"),
    ("Medicare ", "2123456701"),
    ("ABN ", "51824753556"),
    ("IRD ", "49-091-850"),
    ("NHI ", "ZAC5361"),
    ("BVN: ", "22123456789"),
    ("tax id: ", "078051120"),
    ("身份证号：", "11010519491231002X"),
    // Documents and dates of birth.
    ("passport ", "C01X00T47"),
    ("Passport No. ", "123456789"),
    ("passport number: ", "AB1234567"),
    ("Reisepass ", "C3JHWN7Y8"),
    ("护照号码 ", "E12345678"),
    ("driver's license ", "D1234567"),
    ("driver's license # ", "F255-9215-0094"),
    ("Führerschein ", "B072RRE2I55"),
    ("ID card ", "123456789"),
    ("patient ID ", "00123456"),
    ("MRN: ", "12345678"),
    ("DOB: ", "01/02/1980"),
    ("date of birth: ", "1980-02-01"),
    ("geb. ", "01.02.1980"),
    ("Geburtsdatum: ", "1.2.80"),
    ("née le ", "01/02/1980"),
    ("born on ", "1 Feb 1980"),
    ("She was born on ", "February 1, 1980"),
    ("born ", "1980-02-01"),
    ("born: ", "1.2.1980"),
    ("date of birth ", "February 1st, 1980"),
    ("Date of birth: ", "1st of February 1980"),
    ("DOB ", "01-FEB-1980"),
    ("né le ", "1er février 1980"),
    ("geboren am ", "1. März 1980"),
    ("geb. ", "1. Januar 80"),
    ("nacida el ", "1 de febrero de 1980"),
    ("nascido em ", "1 de março de 1980"),
    ("nato il ", "1º maggio 1980"),
    ("родился ", "1 февраля 1980"),
    ("urodzony ", "1 lutego 1980"),
    ("生年月日: ", "1980年2月1日"),
    ("fecha de nacimiento: ", "01-02-1980"),
];

#[test]
fn numbers_with_a_form_of_their_own_are_found_wherever_they_stand() {
    let around = [
        ("", ""),
        ("it is ", " indeed"),
        ("(", ")"),
        ("is:", "."),
        ("no ", ", and"),
        ("\"", "\""),
        ("号码", "吗"),
        ("id=", ";"),
    ];
    let numbers = OPEN.iter().flat_map(|(_, forms)| *forms);
    replaced_everywhere(&[RedactionRule::Id], numbers, &around);
}

#[test]
fn other_numbers_are_found_behind_a_word() {
    let behind = ["", ".", ", please", "\nnext", ")"];
    let rows = ANNOUNCED
        .iter()
        .flat_map(|(front, number)| behind.map(|behind| (*front, *number, behind)));
    replaced_exactly(&[RedactionRule::Id], rows);
}

#[test]
fn a_word_behind_a_number_names_it_too() {
    replaced_exactly(
        &[RedactionRule::Id],
        [
            ("", "536904399", " is my SSN"),
            ("", "536 90 4399", " (SSN)"),
            ("note: ", "9434765919", " (NHS)"),
            ("", "943 476 5919", ", NHS number"),
            ("", "12345678", " is my DNI"),
            ("", "111222333", " is mijn BSN"),
            ("", "234123412346", " - Aadhaar"),
            ("", "C01X00T47", " is my passport number"),
            ("", "1 February 1980", " (date of birth)"),
            ("", "1980-02-01", " is my birthday"),
        ],
    );
}

#[test]
fn twenty_countries_have_numbers_in_the_table() {
    let countries: std::collections::BTreeSet<&str> =
        OPEN.iter().map(|(name, _)| &name[..2]).collect();
    assert!(countries.len() > 45, "{countries:?}");
}

#[test]
fn a_changed_check_digit_is_no_number() {
    for text in [
        "12345678A",
        "X1234567A",
        "123.456.789-00",
        "12345678900",
        "85073003329",
        "7569217076986",
        "1237 010181",
        "811218-9875",
        "15039903359",
        "131052-308U",
        "44051401358",
        "ABA400000",
        "736028/5164",
        "1630615123458",
        "37605030298",
        "10000000147",
        "2341 2341 2349",
        "110105194912310021",
        "A123456780",
        "A123456(4)",
        "S1234567E",
        "8001015009088",
        "2 55 08 14 168 025 39",
        "RSSMRA85T10A562T",
        "1234567A",
    ] {
        let text = format!("it is {text} indeed");
        let redacted = rules().apply(&text).unwrap_or_default();
        assert!(!redacted.contains("[ID-"), "{text}: {redacted}");
    }
}

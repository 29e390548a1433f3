"""The CSV of questions of each prompt's own."""

import pytest

from data.tables.questions import OwnQuestion, read_questions, write_questions

HEADER = "prompt,name,question,wanted\n"
TWO = [
    OwnQuestion("a ball falls", "object", "is there a ball", "Yes", "No"),
    OwnQuestion("a ball falls", "jump", "does anything jump", "No", "Yes"),
]
TEXT = HEADER + "a ball falls,object,is there a ball,Yes\na ball falls,jump,does anything jump,No\n"


@pytest.fixture
def file(tmp_path):
    """Writes the CSV."""

    def write(content: str | bytes):
        path = tmp_path / "questions.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_what_spreadsheets_and_people_write_is_read_as_the_same_questions(file):
    for name, content in {
        "as it should be": TEXT,
        "byte order mark and CRLF": "\ufeff" + TEXT.replace("\n", "\r\n"),
        "empty rows and an empty column": TEXT.replace("wanted\n", "wanted,\n").replace("Yes\n", "Yes\n,,,,\n\n"),
        "names in another case, with spaces": TEXT.replace("prompt,name", " Prompt , NAME "),
        "answers in another case": TEXT.replace("Yes", "yes").replace("No\n", "NO\n"),
        "all columns": "prompt,name,question,wanted,other,required\na ball falls,object,is there a ball,Yes,,\n"
        "a ball falls,jump,does anything jump,No,yes,TRUE\n",
        "columns in another order": "wanted,question,name,prompt\nYes,is there a ball,object,a ball falls\n"
        "No,does anything jump,jump,a ball falls\n",
    }.items():
        assert read_questions(file(content)) == TWO, name


def test_a_word_of_ones_own_has_an_opposite_and_a_question_may_change_no_label(file):
    rows = read_questions(
        file(
            "prompt,name,question,wanted,other,required\n"
            "a ball falls,colour,which colour,Red,Blue,\na ball falls,blur,blurred,No,,no\n"
        )
    )
    assert rows == [
        OwnQuestion("a ball falls", "colour", "which colour", "Red", "Blue"),
        OwnQuestion("a ball falls", "blur", "blurred", "No", "Yes", required=False),
    ]


def test_what_is_written_is_read_as_it_was(tmp_path):
    more = [OwnQuestion("é, 杯", "colour", 'is it "red"?\nSay one word.', "Red", "Blue", required=False)]
    more.append(OwnQuestion("é, 杯", "object", "is there a cup", "Yes", "No"))
    for rows in (TWO, [*TWO, *more]):
        write_questions(tmp_path / "out.csv", rows)
        assert read_questions(tmp_path / "out.csv") == rows
    write_questions(tmp_path / "out.csv", TWO)
    assert (tmp_path / "out.csv").read_text() == TEXT


def test_a_wrong_file_is_refused_with_its_place_and_what_would_be_right(file):
    row = "a ball falls,object,is there a ball,Yes\n"
    wide = "prompt,name,question,wanted,other,required\n"
    for content, *said in [
        ("", "the file is empty"),
        (HEADER, "no questions; wanted at least one row"),
        ("prompt,question,wanted\nx,y,Yes\n", "no column name in the header", "wanted prompt, name, question, wanted"),
        ("prompt,name,questions,wanted\n", "is 'questions' meant?"),
        (TEXT.replace(",", ";"), "separated by semicolons", "CSV UTF-8"),
        (TEXT.encode("utf-16"), "UTF-16", "CSV UTF-8"),
        (TEXT.replace("ball", "bäll").encode("cp1252"), "line 2", "0xe4", "CSV UTF-8"),
        (HEADER + ",object,is there a ball,Yes\n", "row 2: prompt is empty"),
        (HEADER + "a ball falls,,is there a ball,Yes\n", "row 2: name is empty"),
        (HEADER + "a ball falls,object, ,Yes\n", "row 2: question is empty"),
        (HEADER + "a ball falls,object,is there a ball,\n", "row 2: wanted is empty"),
        (HEADER + row + row, "row 3: 'a ball falls' has a question named 'object' already, in row 2"),
        (HEADER + row + "a cup,Object,is there a cup,Yes\n", "row 3: name 'Object' is 'object' in row 2", "alike"),
        (HEADER + "a ball falls,object,is there a ball,Sure\n", "row 2: wanted is 'Sure', expected Yes or No", "other"),
        (HEADER + "a ball falls,object,is there a ball,“Yes”\n", "row 2: wanted is '“Yes”'; write Yes, without quotes"),
        (wide + "a ball falls,object,is there a ball,Yes,'No',\n", "row 2: other is \"'No'\"; write No, without"),
        (wide + "a ball falls,object,red?,Red ball,red cup,\n", "'Red ball' and other 'red cup'", "the same word"),
        (wide + "a ball falls,object,red?,Red!,red.,\n", "'Red!' and other 'red.'", "the same word"),
        (wide + "a ball falls,object,is there a ball,Yes,,maybe\n", "row 2: required is 'maybe', expected Yes or No"),
        (wide + "a ball falls,object,is there a ball,Yes,,no\n", "row 2: no question about 'a ball falls' is required"),
        (HEADER + '"a ball\nfalls",object,is there a ball,Yes\n', "row 2: prompt has a line break", "one line"),
        (HEADER + "a ball, falls,object,is there a ball,Yes\n", "row 2: more cells than columns", "quotes"),
        (HEADER + 'a ball falls,object,"is there a ball,Yes\n', "row 2: a quote opens in this row and never closes"),
    ]:
        path = file(content)
        with pytest.raises(ValueError) as raised:
            read_questions(path)
        message = str(raised.value)
        assert str(path) in message and all(part in message for part in said), (content, message)

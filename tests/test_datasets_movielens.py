"""Reading one folder in MovieLens format: what is accepted, and what each refusal says."""

from __future__ import annotations

import csv
import io
import re
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets.movielens import empty_tags, fold_tag, read_movielens
from app.errors import DataError

RATINGS = "userId,movieId,rating,timestamp\n"
MOVIES = "movieId,title,genres\n"
LINKS = "movieId,imdbId,tmdbId\n"
TAGS = "userId,movieId,tag,timestamp\n"
GOOD = {
    "ratings.csv": RATINGS + "1,1,4.0,964982703\n1,3,0.5,964981247\n2,1,5.0,0\n",
    "movies.csv": MOVIES + '1,Toy Story (1995),Adventure|Comedy\n3,"Misérables, Les (1995)",(no genres listed)\n',
    "links.csv": LINKS + "1,0114709,862\n3,0113228,\n",
    "tags.csv": TAGS + "2,1,pixar,5\n1,3,In Netflix queue,4\n",
}


def write(folder: Path, **files: str | bytes | None) -> Path:
    """Write a good folder in which the files given by stem are replaced; None leaves one out."""
    contents: dict[str, str | bytes | None] = {**GOOD, **{f"{stem}.csv": text for stem, text in files.items()}}
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_movielens(folder)
    return str(caught.value)


def test_the_real_data_set_is_read_as_published(movielens_dir: Path) -> None:
    data = read_movielens(movielens_dir)
    assert (len(data.ratings), len(data.movies), len(data.links), len(data.tags)) == (100_836, 9_742, 9_742, 3_683)
    assert data.fingerprint == "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646"
    assert data.warnings == ()
    assert (data.ratings["user_id"].nunique(), data.ratings["movie_id"].nunique()) == (610, 9_724)
    assert int((data.movies["genres"] == "").sum()) == 34
    assert data.tags.iloc[0].to_dict() == {"user_id": 2, "movie_id": 60_756, "tag": "funny", "timestamp": 1_445_714_994}
    assert (data.tags["user_id"].nunique(), data.tags["movie_id"].nunique()) == (58, 1_572)


def test_columns_have_the_promised_names_types_and_file_order(tmp_path: Path) -> None:
    data = read_movielens(write(tmp_path))
    assert {name: str(dtype) for name, dtype in data.ratings.dtypes.items()} == {
        "user_id": "int64",
        "movie_id": "int64",
        "rating": "float32",
        "timestamp": "int64",
    }
    assert data.ratings["timestamp"].tolist() == [964982703, 964981247, 0]
    assert data.movies["title"].tolist() == ["Toy Story (1995)", "Misérables, Les (1995)"]
    assert data.movies["genres"].tolist() == ["Adventure|Comedy", ""]
    assert data.links["imdb_id"].tolist() == ["0114709", "0113228"]
    assert data.links["tmdb_id"].tolist() == ["862", ""]
    assert data.tags.to_dict("list") == {
        "user_id": [2, 1],
        "movie_id": [1, 3],
        "tag": ["pixar", "In Netflix queue"],
        "timestamp": [5, 4],
    }
    assert data.warnings == ()


def test_links_are_optional_and_then_empty_with_their_types(tmp_path: Path) -> None:
    links = read_movielens(write(tmp_path, links=None)).links
    assert list(links.columns) == ["movie_id", "imdb_id", "tmdb_id"]
    assert len(links) == 0
    assert links["movie_id"].dtype == np.int64
    assert len(read_movielens(write(tmp_path, links=LINKS)).links) == 0


@pytest.mark.parametrize("text", [None, TAGS], ids=["no file", "only a header"])
def test_tags_are_optional_and_then_empty_with_their_types(tmp_path: Path, text: str | None) -> None:
    tags = read_movielens(write(tmp_path, tags=text)).tags
    assert len(tags) == 0
    assert tags.dtypes.to_dict() == read_movielens(write(tmp_path, tags=GOOD["tags.csv"])).tags.dtypes.to_dict()
    assert list(tags.columns) == ["user_id", "movie_id", "tag", "timestamp"]
    assert tags.dtypes.to_dict() == empty_tags().dtypes.to_dict()


def test_tags_stay_as_written_but_for_outer_spaces_and_line_ends(tmp_path: Path) -> None:
    tags = TAGS + '1,1, Sci-Fi ,5\n1,1,NA,5\n1,1,1995,5\n1,1,"a, ""b""",5\n1,1,"two\nlines",5\n1,1,千と,5\n'
    data = read_movielens(write(tmp_path, tags=tags))
    assert data.tags["tag"].tolist() == ["Sci-Fi", "NA", "1995", 'a, "b"', "two lines", "千と"]


@pytest.mark.parametrize(
    ("tag", "folded"),
    [
        ("funny", "funny"),
        ("  Will\t Ferrell ", "will ferrell"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("a\u00a0b", "a b"),
        ("sci-fi", "sci-fi"),
        (" \u2003", ""),
    ],
)
def test_tags_are_compared_without_case_and_surplus_spaces(tag: str, folded: str) -> None:
    assert fold_tag(tag) == folded


def test_of_a_repeated_tag_the_earliest_is_kept_in_its_place_without_a_warning(tmp_path: Path) -> None:
    # One user, one movie, four spellings: the third is the earliest. Another user's and another movie's are others.
    rows = "1,1,Sci Fi,9\n2,1,sci fi,8\n1,1,sci  fi,3\n1,3,sci fi,7\n1,1,SCI FI,5\n1,1,sci-fi,6\n1,1, sci fi,3\n"
    data = read_movielens(write(tmp_path, tags=TAGS + rows))
    assert data.tags.to_dict("list") == {
        "user_id": [2, 1, 1, 1],
        "movie_id": [1, 1, 3, 1],
        "tag": ["sci fi", "sci  fi", "sci fi", "sci-fi"],
        "timestamp": [8, 3, 7, 6],
    }
    assert data.tags.index.tolist() == [0, 1, 2, 3]
    assert data.warnings == ()


def test_empty_tags_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = '1,1,fine,5\n2,3,,6\n1,3,"  ",7\n1,1,\u00a0,8\n2,1,good,4\n'
    data = read_movielens(write(tmp_path, tags=TAGS + rows))
    assert data.tags["tag"].tolist() == ["fine", "good"]
    assert data.tags.index.tolist() == [0, 1]
    (warning,) = data.warnings
    assert warning.endswith("tags.csv: tags without a text: 3 (the first is user 2's for movie 3); they were dropped")


def test_a_file_of_nothing_but_empty_tags_gives_no_tags(tmp_path: Path) -> None:
    data = read_movielens(write(tmp_path, tags=TAGS + "1,1,,5\n"))
    assert len(data.tags) == 0
    assert data.tags.dtypes.to_dict() == empty_tags().dtypes.to_dict()


def test_a_line_that_ends_before_its_tag_is_no_empty_tag(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, tags="userId,movieId,timestamp,tag\n1,1,5,fine\n1,1,5\n"))
    assert "tags.csv, line 3: found 3 fields, expected 4" in message


@pytest.mark.parametrize(
    ("row", "column", "complaint"),
    [
        ("x,2,funny,5", "userId", "found 'x', expected a whole number from 1"),
        ("1,0,funny,5", "movieId", "found '0', expected a whole number from 1"),
        ("1,2,funny,", "timestamp", "the cell is empty, expected a whole number of seconds"),
        ("1,2,funny,1445714994000", "timestamp", "milliseconds? then divide by 1000"),
    ],
)
def test_a_bad_cell_beside_a_tag_is_named_as_one_beside_a_rating_is(
    tmp_path: Path, row: str, column: str, complaint: str
) -> None:
    message = refusal(write(tmp_path, tags=TAGS + "1,1,fine,5\n" + row + "\n"))
    assert message.startswith(f"{tmp_path / 'tags.csv'}, line 3, column {column}: ")
    assert complaint in message


def test_the_fingerprint_is_of_the_ratings_alone(tmp_path: Path) -> None:
    tagged, untagged = (read_movielens(write(tmp_path, tags=text)) for text in (GOOD["tags.csv"], TAGS))
    assert tagged.fingerprint == untagged.fingerprint == sha256(GOOD["ratings.csv"].encode()).hexdigest()


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_marks_and_windows_line_ends_are_accepted(tmp_path: Path, line_end: str, mark: str) -> None:
    files = {name[:-4]: mark + text.replace("\n", line_end) for name, text in GOOD.items()}
    data = read_movielens(write(tmp_path, **files))
    assert data.ratings["movie_id"].tolist() == [1, 3, 1]
    assert data.movies["genres"].tolist() == ["Adventure|Comedy", ""]
    assert data.links["tmdb_id"].tolist() == ["862", ""]
    assert data.tags["tag"].tolist() == ["pixar", "In Netflix queue"]


def test_columns_in_another_order_and_further_columns_are_accepted(tmp_path: Path) -> None:
    ratings = "note,timestamp,rating,movieId,userId\nhello,5,4.5,3,7\n,6,4,1,7\n"
    data = read_movielens(write(tmp_path, ratings=ratings))
    assert data.ratings.to_dict("list") == {
        "user_id": [7, 7],
        "movie_id": [3, 1],
        "rating": [4.5, 4.0],
        "timestamp": [5, 6],
    }


def test_blank_lines_spaces_and_quoted_numbers_are_accepted(tmp_path: Path) -> None:
    data = read_movielens(write(tmp_path, ratings=RATINGS + '\n"1", 2 ,"4.0",5\n\n   \n1,3,3,6\n\n'))
    assert data.ratings["movie_id"].tolist() == [2, 3]


def test_titles_that_look_like_missing_values_stay_titles(tmp_path: Path) -> None:
    data = read_movielens(write(tmp_path, movies=MOVIES + "1,NA,None\n2,None,null\n3,nan,NA\n4,,Drama\n"))
    assert data.movies["title"].tolist() == ["NA", "None", "nan", ""]
    assert data.movies["genres"].tolist() == ["None", "null", "NA", "Drama"]


def test_titles_of_several_lines_become_one_line(tmp_path: Path) -> None:
    data = read_movielens(write(tmp_path, movies='movieId,title,genres\n1,"A\rB\r\nC\tD (2001)",X\n'))
    assert data.movies["title"].tolist() == ["A B C D (2001)"]


def test_titles_keep_commas_quotes_and_accents_and_lose_outer_spaces(tmp_path: Path) -> None:
    movies = MOVIES + '1,"Amélie, ""Le"" (2001)  ",Drama \n2,千と千尋 (2001),\n'
    data = read_movielens(write(tmp_path, movies=movies))
    assert data.movies["title"].tolist() == ['Amélie, "Le" (2001)', "千と千尋 (2001)"]
    assert data.movies["genres"].tolist() == ["Drama", ""]


def test_of_repeated_movies_the_last_row_wins_with_a_warning(tmp_path: Path) -> None:
    data = read_movielens(write(tmp_path, movies=MOVIES + "1,Old,Drama\n3,Other,Drama\n1,Older,Drama\n1,New,War\n"))
    assert data.movies.to_dict("list") == {"movie_id": [3, 1], "title": ["Other", "New"], "genres": ["Drama", "War"]}
    (warning,) = data.warnings
    assert "movies.csv: 2 rows repeat a movieId (the first is 1)" in warning


def test_of_repeated_links_the_last_row_wins_with_a_warning(tmp_path: Path) -> None:
    data = read_movielens(write(tmp_path, links=LINKS + "1,01,1\n1,02,2\n"))
    assert data.links["imdb_id"].tolist() == ["02"]
    assert "links.csv: 1 row repeats" in data.warnings[0]


INT_RANGE = "expected a whole number from 1"
SECONDS = "expected a whole number of seconds since 1970"


@pytest.mark.parametrize(
    ("row", "column", "found", "expected"),
    [
        ("x7,2,4.0,5", "userId", "found 'x7'", INT_RANGE),
        (",2,4.0,5", "userId", "the cell is empty", INT_RANGE),
        ("nan,2,4.0,5", "userId", "found 'nan'", INT_RANGE),
        ("1.0,2,4.0,5", "userId", "found '1.0'", INT_RANGE),
        ("1.5,2,4.0,5", "userId", "found '1.5'", INT_RANGE),
        ("1e3,2,4.0,5", "userId", "found '1e3'", INT_RANGE),
        ("True,2,4.0,5", "userId", "found 'True'", INT_RANGE),
        ("1_000,2,4.0,5", "userId", "found '1_000'", INT_RANGE),
        ("0,2,4.0,5", "userId", "found '0'", INT_RANGE),
        ("1,-2,4.0,5", "movieId", "found '-2'", INT_RANGE),
        ("1,9223372036854775808,4.0,5", "movieId", "found '9223372036854775808'", "to 9223372036854775807"),
        ("1,99999999999999999999,4.0,5", "movieId", "found '99999999999999999999'", "to 9223372036854775807"),
        ("1,2,five,5", "rating", "found 'five'", "expected a number from 0.5 to 5"),
        ("1,2,True,5", "rating", "found 'True'", "expected a number from 0.5 to 5"),
        ("1,2,,5", "rating", "the cell is empty", "expected a number from 0.5 to 5"),
        ("1,2,NaN,5", "rating", "found 'NaN'", "expected a number from 0.5 to 5"),
        ("1,2,inf,5", "rating", "found 'inf'", "expected a number from 0.5 to 5"),
        ("1,2,0,5", "rating", "found '0'", "expected a number from 0.5 to 5"),
        ("1,2,5.5,5", "rating", "found '5.5'", "expected a number from 0.5 to 5"),
        ("1,2,-1,5", "rating", "found '-1'", "expected a number from 0.5 to 5"),
        ("1,2,4.0,-1", "timestamp", "found '-1'", SECONDS),
        ("1,2,4.0,964982703000", "timestamp", "found '964982703000'", "milliseconds? then divide by 1000"),
        ("1,2,4.0,4102444800", "timestamp", "found '4102444800'", "before the year 2100"),
        ("1,2,4.0,2000-01-01", "timestamp", "found '2000-01-01'", SECONDS),
        ("1,2,4.0,5.5", "timestamp", "found '5.5'", SECONDS),
    ],
)
@pytest.mark.parametrize("others", [2, 0], ids=["among good rows", "alone"])
def test_a_bad_cell_is_named_by_file_line_column_value_and_remedy(
    tmp_path: Path, row: str, column: str, found: str, expected: str, others: int
) -> None:
    message = refusal(write(tmp_path, ratings=RATINGS + "1,1,3.5,5\n" * others + row + "\n"))
    assert message.startswith(f"{tmp_path / 'ratings.csv'}, line {2 + others}, column {column}: {found}, ")
    assert expected in message
    assert message.endswith("correct or remove this line")


def test_the_first_of_several_bad_lines_is_named_as_an_editor_counts(tmp_path: Path) -> None:
    movies = MOVIES + '1,"A title\nover two lines",Drama\n\n0,Bad,Drama\n-5,Worse,Drama\n'
    assert "movies.csv, line 5, column movieId: found '0'" in refusal(write(tmp_path, movies=movies))


def test_a_bad_cell_far_down_is_found(tmp_path: Path) -> None:
    ratings = RATINGS + "1,1,3.5,5\n" * 400_000 + "1,1,3.5,oops\n" + "1,1,3.5,5\n" * 10
    assert "line 400002, column timestamp: found 'oops'" in refusal(write(tmp_path, ratings=ratings))


@pytest.mark.parametrize(
    ("stem", "text", "line", "n_found", "n_expected"),
    [
        ("ratings", RATINGS + "1,1,4.0,5\n1,2,4.0,5,6\n", 3, 5, 4),
        ("ratings", RATINGS + "1,2,4.0,5,6\n1,1,4.0,5\n", 2, 5, 4),
        ("ratings", RATINGS + "1,2,4.0,5,\n1,1,4.0,5,\n", 2, 5, 4),
        ("ratings", RATINGS + "1,1,4.0,5\n1,2,4.0\n", 3, 3, 4),
        ("ratings", RATINGS + "1;1;4.0;5\n", 2, 1, 4),
        ("movies", MOVIES + "1,Fine (1990),Drama\n2,Good, the Bad (1966),Western\n", 3, 4, 3),
        ("movies", MOVIES + "1,Good, the Bad (1966),Western\n", 2, 4, 3),
        ("movies", MOVIES + "1,Fine (1990),Drama\n2,Short (1991)\n", 3, 2, 3),
        ("links", LINKS + "1,2,3\n1,2,3,4\n", 3, 4, 3),
        ("tags", TAGS + "1,2,fine,5\n1,2,good, but long,5\n", 3, 5, 4),
    ],
)
def test_a_ragged_line_is_named(tmp_path: Path, stem: str, text: str, line: int, n_found: int, n_expected: int) -> None:
    message = refusal(write(tmp_path, **{stem: text}))
    assert f"{stem}.csv, line {line}: found {n_found} fields, expected {n_expected}" in message
    assert "complete or remove this line" in message


def test_a_quotation_mark_that_is_never_closed_is_named_by_its_line(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, movies=MOVIES + '1,Fine,Drama\n2,"Open,Drama\n3,Other,War\n'))
    assert "movies.csv, line 3: the quotation marks do not match" in message
    assert "close the one that opens in this line" in message


@pytest.mark.parametrize(
    ("stem", "header", "missing"),
    [
        ("ratings", "userId,movieId,stars,timestamp", "column rating is missing"),
        ("ratings", "userId;movieId;rating;timestamp", "column userId, movieId, rating, timestamp is missing"),
        ("ratings", "1,1,4.0,964982703", "column userId, movieId, rating, timestamp is missing"),
        ("movies", "movieId,name", "column title, genres is missing"),
        ("links", "movieId,imdb,tmdbId", "column imdbId is missing"),
        ("tags", "userId,movieId,tags,timestamp", "column tag is missing"),
    ],
)
def test_a_missing_column_is_named_with_what_was_found(tmp_path: Path, stem: str, header: str, missing: str) -> None:
    message = refusal(write(tmp_path, **{stem: header + "\n1,2,3,4\n"}))
    assert f"{stem}.csv, line 1: {missing}, found '{header}'" in message
    assert "the first line must be the comma-separated header" in message


@pytest.mark.parametrize("stem", ["ratings", "movies", "links", "tags"])
@pytest.mark.parametrize("content", [b"", b"\n\r\n\n", b"\xef\xbb\xbf"], ids=["no bytes", "blank lines", "only BOM"])
def test_an_empty_file_is_refused(tmp_path: Path, stem: str, content: bytes) -> None:
    message = refusal(write(tmp_path, **{stem: content}))
    assert f"{stem}.csv is empty; expected a CSV file with the header " in message


@pytest.mark.parametrize(("stem", "text"), [("ratings", RATINGS), ("movies", MOVIES), ("ratings", RATINGS[:-1])])
def test_a_file_with_only_a_header_is_refused(tmp_path: Path, stem: str, text: str) -> None:
    assert f"{stem}.csv holds a header but no {stem}; expected at least one" in refusal(write(tmp_path, **{stem: text}))


@pytest.mark.parametrize("stem", ["ratings", "movies", "links", "tags"])
@pytest.mark.parametrize(
    ("encoding", "named", "where"),
    [("latin-1", "LATIN1", "line 3"), ("utf-16", "UTF-16", "line 1"), ("utf-16-le", "UTF-16", "line 1")],
)
def test_a_file_that_is_not_utf8_is_named_with_the_command_that_converts_it(
    tmp_path: Path, stem: str, encoding: str, named: str, where: str
) -> None:
    text = GOOD[f"{stem}.csv"].splitlines()
    content = f"{text[0]},note\n{text[1]},e\n{text[1]},é\n".encode(encoding)
    message = refusal(write(tmp_path, **{stem: content}))
    assert f"{stem}.csv, {where}: " in message
    assert "expected UTF-8" in message
    assert f"iconv -f {named} -t UTF-8 {stem}.csv > {stem}-utf8.csv" in message


def test_latin1_beyond_the_first_block_is_found(tmp_path: Path) -> None:
    movies = (MOVIES + "1,Plain,Drama\n" * 100_000 + "2,Amélie,Drama\n").encode("latin-1")
    assert "movies.csv, line 100002: found bytes that are not UTF-8" in refusal(write(tmp_path, movies=movies))


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no'} does not exist; expected a folder" in refusal(tmp_path / "no")
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'} is not a folder" in refusal(tmp_path / "file")
    assert "ratings.csv does not exist; name a folder" in refusal(write(tmp_path, ratings=None))
    (tmp_path / "movies.csv").unlink()
    assert "movies.csv does not exist; name a folder" in refusal(write(tmp_path, movies=None))


@pytest.mark.parametrize("name", ["ratings.csv", "movies.csv", "links.csv", "tags.csv"])
def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert f"{tmp_path / name} is a folder, expected a CSV file" in refusal(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that even root cannot read")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "movies.csv").unlink()
    (tmp_path / "movies.csv").symlink_to("/proc/self/mem")
    assert re.search(r"movies\.csv cannot be read \(.+\); check its permissions", refusal(tmp_path))


IDS = st.integers(1, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\ufeff"), max_size=20)
RATING_ROWS = st.tuples(IDS, IDS, st.integers(1, 10).map(lambda half: half / 2), st.integers(0, 4_102_444_799))
MOVIE_ROWS = st.tuples(IDS, TEXT.map(str.strip), TEXT.map(str.strip))


@given(
    ratings=st.lists(RATING_ROWS, min_size=1, max_size=20),
    movies=st.lists(MOVIE_ROWS, min_size=1, max_size=20, unique_by=lambda row: row[0]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@settings(max_examples=100, deadline=None)
def test_whatever_valid_table_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    ratings: list[tuple[int, int, float, int]],
    movies: list[tuple[int, str, str]],
    line_end: str,
    encoding: str,
    quoting: int,
) -> None:
    folder = tmp_path_factory.mktemp("written")
    for name, header, rows in (("ratings.csv", RATINGS, ratings), ("movies.csv", MOVIES, movies)):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator=line_end, quoting=quoting)  # type: ignore[arg-type]
        writer.writerows([header.strip().split(","), *rows])
        (folder / name).write_bytes(text.getvalue().encode(encoding))
    data = read_movielens(folder)
    assert list(data.ratings.itertuples(index=False, name=None)) == ratings
    found = list(data.movies.itertuples(index=False, name=None))
    assert found == [(movie_id, title, genres.replace("(no genres listed)", "")) for movie_id, title, genres in movies]


def test_tags_that_nobody_asks_for_are_not_looked_at(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "tags.csv").write_text("user,tag\nwhat,ever\n", encoding="utf-8")
    assert read_movielens(folder, with_tags=False).tags.empty
    with pytest.raises(DataError, match=r"tags\.csv"):
        read_movielens(folder)

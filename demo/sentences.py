"""Korean sentences for the demo, drawn from a small grammar of our own.

The grammar speaks of what the users of this project transcribe: broadcasts, banks, hospitals, public offices and
everyday life. Particles follow the final consonant of the word before them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

TIMES = """오늘 아침에|오늘 오후에|어제 저녁에|어젯밤에|지난 월요일에|지난 화요일에|지난 수요일에|지난 목요일에|
이번 금요일에|이번 토요일에|이번 일요일에|지난주에|지난달에|올해 봄에|작년 여름에|올해 가을에|작년 겨울에|
점심시간에|퇴근길에|출근길에|새벽에|한 시간 전에|세 시쯤에|아홉 시 반에|열두 시 전에|주말마다|매일 아침|조금 전에|
방금|며칠 전에|얼마 전에|명절에|휴가 때|비 오는 날에"""

PLACES = """은행|병원|구청|시청|도서관|우체국|경찰서|방송국|법원|학교|회사|시장|공항|기차역|버스 정류장|지하철역|
약국|백화점|편의점|식당|카페|공원|박물관|체육관|주민 센터|보건소|세무서|연구소|회의실|사무실|응급실|접수창구|미술관|
영화관|놀이터|호텔|서점|빵집|꽃집|세탁소|부산|대구|인천|광주|대전|울산|제주도|강릉|수원|전주"""

PEOPLE = """어머니|아버지|할머니|할아버지|누나|형|동생|친구|선생님|의사 선생님|간호사|약사|기자|아나운서|은행 직원|
담당 공무원|경찰관|소방관|변호사|판사|운전기사|택배 기사|이웃집 아저씨|옆집 아주머니|부장님|과장님|신입 사원|사장님|
손님|환자|보호자|학생|대학생|연구원|감독|선수|가수|배우|통역사|안내원|상담원|시장님|팀장님|조카|삼촌|이모"""

# Objects, then the verbs that go with every one of them; a line of each makes one frame.
FRAMES = [
    (
        (
            "신청서|계약서|보고서|영수증|진단서|통장 사본|주민등록 등본|회의 자료|설명서|안내문|초대장|이력서|"
            "견적서|동의서|추천서"
        ),
        (
            "제출했습니다|확인했습니다|다시 보냈습니다|찾고 있습니다|복사했습니다|출력했습니다|검토하는 중입니다|"
            "잃어버렸습니다|번역해 주었습니다|꼼꼼히 읽었습니다|서랍에 넣었습니다|팩스로 받았습니다|고쳐 썼습니다"
        ),
    ),
    (
        "적금|예금|대출|보험|신용카드|체크카드|자동 이체|외화 통장|연금",
        (
            "신청했습니다|해지했습니다|알아보고 있습니다|새로 만들었습니다|추천해 주었습니다|상담받았습니다|"
            "바꾸기로 했습니다|꼼꼼히 비교했습니다"
        ),
    ),
    (
        "감기약|두통약|소화제|연고|반창고|안약|비타민|마스크|체온계|소독약",
        "샀습니다|챙겨 왔습니다|찾아 주었습니다|받아 갔습니다|두고 왔습니다|나누어 주었습니다|다 써 버렸습니다",
    ),
    (
        "뉴스|드라마|다큐멘터리|축구 경기|야구 경기|일기 예보|음악 방송|토론회|개막식|연설",
        (
            "보았습니다|생방송으로 보았습니다|녹화했습니다|소개했습니다|기다렸습니다|취재했습니다|다시 들었습니다|"
            "놓쳤습니다"
        ),
    ),
    (
        "김치찌개|된장국|비빔밥|냉면|떡볶이|불고기|삼계탕|칼국수|만두|잡채|갈비탕|볶음밥|죽|샌드위치|토스트",
        (
            "먹었습니다|만들었습니다|주문했습니다|포장해 갔습니다|맛있게 먹었습니다|함께 나누어 먹었습니다|"
            "추천했습니다|조금 남겼습니다"
        ),
    ),
    (
        "커피|녹차|우유|오렌지 주스|식혜|보리차|유자차|콜라|따뜻한 물",
        "마셨습니다|주문했습니다|쏟았습니다|건네주었습니다|끓였습니다|한 잔 더 마셨습니다|사 왔습니다",
    ),
    (
        "휴대 전화|지갑|우산|열쇠|가방|안경|모자|장갑|목도리|시계|노트북|이어폰|신분증|여권|수첩",
        (
            "잃어버렸습니다|찾았습니다|빌려주었습니다|두고 내렸습니다|새로 샀습니다|선물했습니다|맡겨 두었습니다|"
            "고쳤습니다|보여 주었습니다|책상 위에 놓았습니다"
        ),
    ),
    (
        "사과|배|포도|수박|참외|딸기|복숭아|귤|감자|고구마|옥수수|배추|무|양파|당근|오이|호박|달걀|두부|생선",
        ("샀습니다|팔았습니다|씻었습니다|썰었습니다|골랐습니다|배달시켰습니다|냉장고에 넣었습니다|한 상자 보냈습니다"),
    ),
    (
        "피아노|바이올린|기타|수영|태권도|요리|운전|영어|중국어|컴퓨터|그림|바둑",
        "배우기 시작했습니다|가르치고 있습니다|연습했습니다|열심히 배웁니다|그만두었습니다|다시 시작했습니다",
    ),
    (
        "소설|시집|만화책|신문|잡지|사전|교과서|동화책|편지|일기",
        (
            "읽었습니다|빌렸습니다|돌려주었습니다|번역했습니다|썼습니다|소리 내어 읽었습니다|친구에게 주었습니다|"
            "버렸습니다"
        ),
    ),
    (
        "진료|수술|예약|면담|회의|발표|행사|면접|시험|공연|여행|이사|촬영|점검|공사",
        (
            "미루었습니다|준비하고 있습니다|취소했습니다|무사히 마쳤습니다|앞두고 있습니다|다음 주로 옮겼습니다|"
            "도왔습니다"
        ),
    ),
    (
        "창문|문|엘리베이터|에어컨|세탁기|냉장고|텔레비전|전등|컴퓨터|프린터|자전거|자동차",
        "고쳤습니다|닦았습니다|점검했습니다|바꾸었습니다|껐습니다|켜 두었습니다|옮겼습니다|고장 냈습니다",
    ),
]

# Whole clauses that stand after a time or a place, or alone.
CLAUSES = """비가 많이 내렸습니다|눈이 조금 왔습니다|바람이 강하게 불었습니다|안개가 짙게 끼었습니다|
하늘이 맑게 개었습니다|기온이 크게 떨어졌습니다|천둥이 쳤습니다|길이 많이 막혔습니다|사고가 났습니다|
불이 났지만 금방 꺼졌습니다|정전이 되었습니다|손님이 아주 많았습니다|자리가 하나도 없었습니다|
줄이 길게 늘어섰습니다|열이 나고 목이 아팠습니다|기침이 멈추지 않았습니다|허리가 아파서 누워 있었습니다|
기차가 십 분 늦게 도착했습니다|비행기가 제시간에 떠났습니다|전화가 계속 울렸습니다|인터넷이 자주 끊겼습니다|
환율이 조금 올랐습니다|금리가 내렸습니다|주가가 크게 올랐습니다|물가가 많이 올랐습니다|선거가 치러졌습니다|
법안이 통과되었습니다|협상이 다시 시작되었습니다|축제가 열렸습니다|전시회가 문을 열었습니다|
길을 잃고 한참 헤맸습니다|오랜만에 친구를 만났습니다|가족과 함께 산책했습니다|강아지와 함께 뛰어놀았습니다|
늦잠을 자서 지각했습니다|버스를 놓쳐서 걸어갔습니다|급하게 뛰어가다가 넘어졌습니다|조용히 음악을 들었습니다|
사진을 여러 장 찍었습니다|주소를 잘못 적었습니다|비밀번호를 바꾸었습니다|번호표를 뽑고 기다렸습니다|
불꽃놀이를 구경했습니다|결과가 나오기를 기다립니다|혈압을 재고 주사를 맞았습니다|엑스레이를 찍었습니다|
검사 결과를 들었습니다|잔돈을 받지 못했습니다"""

REQUESTS = """여기에 서명해 주세요|잠시만 기다려 주세요|천천히 말씀해 주세요|다시 한번 확인해 주세요|
창구로 와 주세요|전화번호를 알려 주세요|성함을 적어 주세요|신분증을 보여 주세요|볼륨을 조금 줄여 주세요|
숨을 깊게 들이마시세요|약을 하루에 세 번 드세요|오른쪽으로 돌아가세요|길을 건너서 왼쪽으로 가세요|계단을 조심하세요|
문을 꼭 닫아 주세요|휴대 전화를 꺼 주세요|안전띠를 매 주세요|물을 많이 드세요|푹 쉬셔야 합니다|
접수부터 하셔야 합니다|조금 더 크게 말해 주세요|사진을 한 장 찍어 주세요|이쪽으로 앉으세요|내일 다시 오세요|
우산을 꼭 챙기세요"""

OPENINGS = ["그래서", "그런데", "그리고", "하지만", "그러나", "다행히", "마침내", "역시"]
POLITE = """죄송하지만|지금|먼저|이제|손님|환자분|보호자분|어르신|선생님|고객님|여러분|급하시면|괜찮으시면|
번거로우시겠지만|내일은|모레는|다음 주에는|두 시간 뒤에는|접수가 끝나면|비가 오면|시간이 되면"""


def draw_sentences(count: int, seed: int, exclude: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """Return `count` different sentences, none of them in `exclude`; the same ones for the same arguments."""
    rng = random.Random(seed)
    seen = set(exclude)
    return [next(_new_sentences(rng, seen)) for _ in range(count)]


def _new_sentences(rng: random.Random, seen: set[str]) -> Iterator[str]:
    while True:
        sentence = _sentence(rng)
        if sentence not in seen:
            seen.add(sentence)
            yield sentence


def _sentence(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.62:
        parts = [*_setting(rng), *_action(rng)]
    elif kind < 0.88:
        parts = [*_setting(rng, at_least=1), _one(rng, CLAUSES)]
    else:
        parts = [_one(rng, POLITE), _one(rng, REQUESTS)]
    if kind < 0.88 and rng.random() < 0.12:
        parts.insert(0, rng.choice(OPENINGS))
    return " ".join(parts)


def _setting(rng: random.Random, at_least: int = 0) -> list[str]:
    """A time, a place, both, or (with `at_least` 0) neither."""
    choice = rng.choices(["time", "place", "both", "none"], [4, 3, 1, 3 if at_least == 0 else 0])[0]
    time = [_one(rng, TIMES)] if choice in ("time", "both") else []
    place = [_one(rng, PLACES) + "에서"] if choice in ("place", "both") else []
    return time + place


def _action(rng: random.Random) -> list[str]:
    objects, verbs = rng.choice(FRAMES)
    thing = _one(rng, objects)
    subject = _one(rng, PEOPLE)
    acting = [subject + _particle(subject, "이", "가")] if rng.random() < 0.6 else []
    return [*acting, thing + _particle(thing, "을", "를"), _one(rng, verbs)]


def _one(rng: random.Random, alternatives: str) -> str:
    return rng.choice(alternatives.split("|")).strip()


def _particle(word: str, after_consonant: str, after_vowel: str) -> str:
    """Pick the form of a particle: a Hangul syllable's code point tells whether it ends in a consonant."""
    has_final_consonant = (ord(word[-1]) - 0xAC00) % 28 != 0
    return after_consonant if has_final_consonant else after_vowel

"Data sets in the layouts in which they are published, each made by its own rules from the same interactions"
import gzip, json
from pathlib import Path
import numpy as np
import pandas as pd

def shop(n_users=12, n_items=9, per_user=6, seed=0):
    "Interactions (user, item, rating, time) in a random order of rows, no two times equal; and the items"
    rng = np.random.default_rng(seed)
    per_user = min(per_user, n_items)
    item = np.concatenate([rng.permutation(n_items)[:per_user] for _ in range(n_users)]) if n_items < 1000 else rng.integers(0, n_items, n_users*per_user)
    user, n = np.repeat(np.arange(n_users), per_user), n_users*per_user
    rows = pd.DataFrame(dict(user=user, item=item, rating=rng.integers(1, 6, n), time=1_300_000_000 + 86400*rng.permutation(n)))
    words = 'silk rose amber cedar mint lemon pearl'.split()
    items = pd.DataFrame(dict(item=np.arange(n_items), title=[f"{words[i % 7].title()} soap, no {i} & more" for i in range(n_items)],
                              description=[f"It's a {words[i % 5]} soap" for i in range(n_items)], price=[f'{i}.99' for i in range(n_items)],
                              categories=[['Beauty', words[i % 3].title()] for i in range(n_items)]))
    return rows.sample(frac=1, random_state=seed).reset_index(drop=True), items

def asin(i): return f'B{i:09d}'
def reviewer(u): return f'A{u:012d}X'
def lines(path, records, form=json.dumps, zipped=False):
    data = ''.join(form(r) + '\n' for r in records).encode()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(gzip.compress(data, 1, mtime=0) if zipped else data)

def amazon2014(folder, rows, items, quotes=False):
    form = repr if quotes else json.dumps
    lines(folder/'reviews_Beauty_5.json.gz', [dict(reviewerID=reviewer(r.user), asin=asin(r.item), reviewerName='J. "Jo" Doe', helpful=[0, 0], reviewText="I don't mind; fine\n",
          overall=float(r.rating), summary='ok', unixReviewTime=int(r.time), reviewTime='01 1, 2014') for r in rows.itertuples()], form, True)
    lines(folder/'meta_Beauty.json.gz', [dict(asin=asin(i.item), title=i.title.replace('&', '&amp;'), description=i.description, price=float(i.price), imUrl='http://x.org/a.jpg',
          related=dict(also_bought=[asin(0)]), salesRank=dict(Beauty=i.item), categories=[i.categories, ['Beauty', 'Soap']]) for i in items.itertuples()], repr, True)

def amazon2018(folder, rows, items):
    lines(folder/'Beauty_5.json', [dict(overall=float(r.rating), verified=True, reviewTime='01 1, 2018', reviewerID=reviewer(r.user), asin=asin(r.item), reviewText='fine', unixReviewTime=int(r.time))
          for r in rows.itertuples()])
    lines(folder/'meta_Beauty.json', [dict(asin=asin(i.item), title=i.title, category=i.categories, description=[i.description], feature=['soft'], brand='Lush', rank='1,234 in Beauty',
          price=f'${i.price}', also_buy=[asin(1)]) for i in items.itertuples()])

def amazon2018_csv(folder, rows, items):                      # item, user, rating, time; no head
    pd.DataFrame([(asin(r.item), reviewer(r.user), float(r.rating), r.time) for r in rows.itertuples()]).to_csv(folder/'Beauty.csv', header=False, index=False)

def amazon2023(folder, rows, items):
    lines(folder/'All_Beauty.jsonl', [dict(rating=float(r.rating), title='Nice', text='fine', images=[], asin=asin(999), parent_asin=asin(r.item), user_id=reviewer(r.user),
          timestamp=int(r.time)*1000 + 7, helpful_vote=0, verified_purchase=True) for r in rows.itertuples()])
    lines(folder/'meta_All_Beauty.jsonl', [dict(main_category='All Beauty', title=i.title, average_rating=4.5, rating_number=10, features=['soft', 'round'], description=[i.description],
          price=None, images=[], videos=[], store='Lush', categories=i.categories, details={'a': 'b'}, parent_asin=asin(i.item), bought_together=None) for i in items.itertuples()])

def amazon2023_parquet(folder, rows, items):
    pd.DataFrame(dict(user_id=rows.user.map(reviewer), parent_asin=rows.item.map(asin), rating=rows.rating.astype(float), timestamp=rows.time*1000)).to_parquet(folder/'reviews.parquet')
    items.assign(parent_asin=items.item.map(asin), features=[['soft', 'round']]*len(items), average_rating=4.5).drop(columns=['item', 'price']).to_parquet(folder/'meta.parquet')

def movielens1m(folder, rows, items):
    data = ''.join(f'{r.user+1}::{r.item+1}::{r.rating}::{r.time}\n' for r in rows.itertuples())
    (folder/'ratings.dat').write_bytes(data.encode('latin-1'))
    films = ''.join(f'{i.item+1}::{i.title} é ({1990+i.item})::Drama|{i.categories[1]}\n' for i in items.itertuples())
    (folder/'movies.dat').write_bytes(films.encode('latin-1'))
    (folder/'users.dat').write_bytes(''.join(f'{u+1}::F::1::10::48067\n' for u in range(12)).encode())

def movielens20m(folder, rows, items):
    pd.DataFrame(dict(userId=rows.user+1, movieId=rows.item+1, rating=rows.rating, timestamp=rows.time)).to_csv(folder/'ratings.csv', index=False)
    pd.DataFrame(dict(movieId=items.item+1, title=items.title, genres=['|'.join(c) for c in items.categories])).to_csv(folder/'movies.csv', index=False)
    pd.DataFrame(dict(userId=[1], movieId=[2], tag=['fun'], timestamp=[1])).to_csv(folder/'tags.csv', index=False)
    pd.DataFrame(dict(movieId=[1, 2], imdbId=[3, 4], tmdbId=[5, 6])).to_csv(folder/'links.csv', index=False)

def movielens100k(folder, rows, items):
    (folder/'u.data').write_text(''.join(f'{r.user+1}\t{r.item+1}\t{r.rating}\t{r.time}\n' for r in rows.itertuples()))
    (folder/'u.item').write_bytes(''.join(f'{i.item+1}|{i.title} é|01-Jan-1995||http://us.imdb.com/M?x|' + '|'.join('01'*9 + '0') + '\n' for i in items.itertuples()).encode('latin-1'))

def yelp(folder, rows, items):
    day = lambda t: str(pd.Timestamp(t, unit='s'))
    lines(folder/'yelp_academic_dataset_review.json', [dict(review_id='r', user_id=reviewer(r.user), business_id=asin(r.item), stars=float(r.rating), useful=0, text='good', date=day(r.time)) for r in rows.itertuples()])
    lines(folder/'yelp_academic_dataset_business.json', [dict(business_id=asin(i.item), name=i.title, address='1 St', city='Reno', state='NV', postal_code='89501', latitude=1.5, longitude=2.5, stars=4.0,
          review_count=3, is_open=1, attributes={'a': 'True'}, categories=', '.join(i.categories), hours=None) for i in items.itertuples()])
    lines(folder/'yelp_academic_dataset_user.json', [dict(user_id=reviewer(0), name='Ann', review_count=1)])

def steam(folder, rows, items):
    lines(folder/'steam_reviews.json.gz', [dict(username=reviewer(r.user), product_id=str(r.item + 10), hours=1.5, text="don't", date=str(pd.Timestamp(r.time, unit='s').date()), page=1) for r in rows.itertuples()], repr, True)
    lines(folder/'steam_games.json.gz', [dict(publisher='Valve', genres=i.categories, app_name=i.title, title=i.title, url='http://s.org/1', tags=['Fun'], price=4.99, id=str(i.item + 10)) for i in items.itertuples()], repr, True)

def recbole(folder, rows, items):
    (folder/'Q.inter').write_text('user_id:token\titem_id:token\trating:float\ttimestamp:float\n' + ''.join(f'{r.user}\t{r.item}\t{r.rating}\t{r.time}\n' for r in rows.itertuples()))
    (folder/'Q.item').write_text('item_id:token\ttitle:token_seq\tprice:float\n' + ''.join(f'{i.item}\t{i.title}\t{i.price}\n' for i in items.itertuples()))

def letter(folder, rows, items):
    x = rows.sort_values('time').groupby('user').item.apply(list)
    (folder/'Q.inter.json').write_text(json.dumps({str(u): list(map(int, h)) for u, h in x.items()}))
    (folder/'Q.item.json').write_text(json.dumps({str(i.item): dict(title=i.title, description=i.description) for i in items.itertuples()}))

def grid(folder, rows, items):
    x = rows.sort_values('time').groupby('user').agg(list).reset_index()
    pd.DataFrame(dict(user_id=x.user, sequence_data=x.item, timestamps=x.time)).to_parquet(folder/'data.parquet')
    items[['item', 'title']].rename(columns=dict(item='id', title='text')).to_parquet(folder/'items.parquet')

def minionerec(folder, rows, items):                          # samples by time: 80, 10, 10 %
    titles, samples = dict(zip(items.item, items.title)), []
    for u, g in rows.sort_values('time').groupby('user'):
        i, t, r = g.item.tolist(), g.time.tolist(), g.rating.tolist()
        samples += [dict(user_id=reviewer(u), history_item_title=str([titles[x] for x in i[:n]]), item_title=titles[i[n]], history_item_id=str(i[:n]), item_id=i[n], history_rating=str(r[:n]),
                         rating=r[n], history_timestamp=str(t[:n]), timestamp=t[n]) for n in range(1, len(i))]
    x = pd.DataFrame(samples).sort_values('timestamp')
    cut = round(.8*len(x)), round(.9*len(x))
    for part, piece in dict(train=x[:cut[0]], valid=x[cut[0]:cut[1]], test=x[cut[1]:]).items():
        (folder/part).mkdir(parents=True, exist_ok=True)
        piece.to_csv(folder/part/'Beauty_5_2016-10-2018-11.csv', index=False)
    (folder/'index').mkdir(exist_ok=True)
    (folder/'index'/'Beauty.item.json').write_text(json.dumps({str(i.item): dict(title=i.title, description=i.description) for i in items.itertuples()}))

def split_csv(folder, rows, items):                           # last out, as Amazon 2023's benchmark has it
    x = rows.sort_values(['user', 'time'])
    back = x.groupby('user').cumcount(ascending=False)
    for part, piece in dict(train=x[back > 1], valid=x[back == 1], test=x[back == 0]).items():
        pd.DataFrame(dict(user_id=piece.user.map(reviewer), parent_asin=piece.item.map(asin), rating=piece.rating, timestamp=piece.time*1000)).to_csv(folder/f'Beauty.{part}.csv', index=False)
    lines(folder/'meta_Beauty.jsonl', [dict(title=i.title, parent_asin=asin(i.item), description=[i.description]) for i in items.itertuples()])

def table(folder, rows, items):
    rows.to_csv(folder/'interactions.csv', index=False)
    items.assign(categories=[', '.join(c) for c in items.categories]).to_csv(folder/'items.csv', index=False)

KINDS = dict(table=table, amazon2014=amazon2014, amazon2014_quotes=lambda *a: amazon2014(*a, quotes=True), amazon2018=amazon2018, amazon2018_csv=amazon2018_csv, amazon2023=amazon2023,
             amazon2023_parquet=amazon2023_parquet, movielens1m=movielens1m, movielens20m=movielens20m, movielens100k=movielens100k, yelp=yelp, steam=steam, recbole=recbole, letter=letter, grid=grid,
             minionerec=minionerec, split_csv=split_csv)

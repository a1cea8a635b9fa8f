"""Data sets in the layouts they were published in, imitated with small files, and the real subsets where they are."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from scipy.io import savemat

from grafalign.datasets import known_sets, open_set
from grafalign.datasets.bigearthnet import class_names
from grafalign.datasets.captions import PUBLISHED
from grafalign.datasets.class_folders import in_words, published
from grafalign.datasets.deepsat import CLASSES
from grafalign.errors import GrafalignError
from grafalign.labels import VOID


def paint(path: Path, colour: tuple[int, ...] | int = (200, 100, 50), size: int = 4, mode: str = 'RGB') -> Path:
    """A small picture of one colour; the ending says of which kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size), colour).save(path)
    return path


def raster(path: Path, bands: int, size: int = 8, value: int = 1000, dtype: str = 'uint16', side: float = 10.0) -> Path:
    """A small GeoTIFF in UTM zone 33, band i filled with value + i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = from_origin(500_000, 5_000_000, side, side)
    with rasterio.open(
        path, 'w', driver='GTiff', width=size, height=size, count=bands, dtype=dtype, crs='EPSG:32633', transform=place
    ) as file:
        for i in range(bands):
            file.write(np.full((size, size), value + i, dtype), i + 1)
    return path


def refused(spec: str, *said: str, **options: object) -> None:
    """Opening ends in one sentence that holds all of `said`."""
    with pytest.raises(GrafalignError) as error:
        found = open_set(spec, **options)  # type: ignore[arg-type]
        for row in range(len(found)):
            found.read(row)
    for part in said:
        assert part in str(error.value), str(error.value)


def class_folders(root: Path, name: str, each: int | None = None, suffix: str = '.png') -> Path:
    """A published set of class folders, whole or with `each` images a class."""
    for folder, told in published()[name]['classes'].items():
        for i in range(each if each is not None else told[1]):
            paint(root / folder / f'{folder.lower()}_{i + 1}{suffix}')
    return root


LAYOUTS = {
    'eurosat': '2750',
    'ucmerced': 'UCMerced_LandUse/Images',
    'resisc45': 'NWPU-RESISC45',
    'aid': 'AID',
    'patternnet': 'PatternNet/images',
    'whurs19': 'WHU-RS19',
    'mlrsnet46': 'MLRSNet/Images',
}
TOTALS = {
    'eurosat': (10, 27_000),
    'ucmerced': (21, 2_100),
    'resisc45': (45, 31_500),
    'aid': (30, 10_000),
    'patternnet': (38, 30_400),
    'whurs19': (19, 1_005),
    'mlrsnet': (46, 109_161),
}


def test_counts_add_up_to_the_published_totals() -> None:
    """Classes and images of each table are those of the set's page."""
    for name, (classes, images) in TOTALS.items():
        told = published()[name]['classes']
        assert (len(told), sum(v[1] for v in told.values())) == (classes, images), name
    assert len(published()['mlrsnet']['labels']) == 60 and len(published()['fmow']['classes']) == 62
    assert len(class_names(19)) == 19 and len(class_names(43)) == 43


@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.parametrize('packed', [False, True])
def test_class_folders_are_found_below_any_folder_or_in_a_zip(name: str, packed: bool, tmp_path: Path) -> None:
    """The folder itself, the one around it and the archive give the same set, in the published order of classes."""
    key = 'mlrsnet' if name == 'mlrsnet46' else name
    where = class_folders(tmp_path / 'data' / LAYOUTS[name], key, 1)
    paths = [where, tmp_path / 'data']
    if packed:
        archive = tmp_path / f'{name}.zip'
        with zipfile.ZipFile(archive, 'w') as file:
            for path in sorted((tmp_path / 'data').rglob('*.png')):
                file.write(path, path.relative_to(tmp_path / 'data'))
        paths = [archive]
    for path in paths:
        found = open_set(f'{name}:{path}', partial=True)
        assert list(found.classes) == [v[0] for v in published()[key]['classes'].values()]
        assert found.labels is not None and found.labels.tolist() == list(range(len(found.classes)))
        assert found.read(0).shape == (3, 4, 4) and any('partial' in n for n in found.notes)
    refused(f'{name}:{paths[0]}', key, 'instead of', '--partial')


def test_a_whole_set_passes_and_one_missing_image_does_not(tmp_path: Path) -> None:
    """All 1,005 images of WHU-RS19 are the set; one less is an error that names its class."""
    where = class_folders(tmp_path / 'WHU-RS19', 'whurs19')
    assert len(open_set(f'whurs19:{where}')) == 1005
    (where / 'Pond' / 'pond_7.png').unlink()
    refused(f'whurs19:{where}', 'Pond has 53 images instead of 54')
    for path in (where / 'River').iterdir():
        path.unlink()
    refused(f'whurs19:{where}', 'no images of 1 of 19 classes (River)')


def test_splits_come_from_the_published_lists(tmp_path: Path) -> None:
    """A list of names chooses images by their stems; without it, or with another length, it is an error."""
    where = class_folders(tmp_path / 'EuroSAT_RGB', 'eurosat', 3, '.jpg')
    refused(f'eurosat:{where}@test', 'eurosat-test.txt', partial=True)
    (tmp_path / 'eurosat-test.txt').write_text('forest_2.tif\nriver_1.tif\n')
    found = open_set(f'eurosat:{where}@test', partial=True)
    assert [Path(i).stem for i in found.items] == ['forest_2', 'river_1'] and found.split == 'test'
    assert [found.classes[i] for i in found.labels] == ['forest', 'river']
    refused(f'aid:{class_folders(tmp_path / "AID", "aid", 1)}@test', 'no published split', partial=True)


def test_eurosat_with_all_bands_knows_them_and_its_places(tmp_path: Path) -> None:
    """13 bands by name, B8A last, stretched from 0 to 3000, with the centre of each image."""
    for folder in published()['eurosat']['classes']:
        raster(tmp_path / 'EuroSAT_MS' / folder / f'{folder}_1.tif', 13, 64)
    found = open_set(f'eurosat13:{tmp_path}', partial=True)
    assert found.bands[3] == 'B04' and found.bands[-1] == 'B8A' and found.value_range == (0, 3000)
    assert found.read(0)[:, 0, 0].tolist() == list(range(1000, 1013))
    places = found.lonlat()
    assert places is not None
    np.testing.assert_allclose(places[0], [15.0041, 45.1506], atol=1e-3)


def test_mlrsnet_labels_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    """The order of columns differs between files; damaged files and images without a row are errors."""
    class_folders(tmp_path / 'Images', 'mlrsnet', 1, '.jpg')
    labels = list(published()['mlrsnet']['labels'])
    for number, folder in enumerate(published()['mlrsnet']['classes']):
        columns = labels if number % 2 else labels[::-1]
        rows = {c: [int(c in ('trees', 'water'))] for c in columns}
        table = pd.DataFrame({'image': [f'{folder.lower()}_1.jpg'], **rows})
        (tmp_path / 'Labels').mkdir(exist_ok=True)
        table.to_csv(tmp_path / 'Labels' / f'{folder}.csv', index=False)
    found = open_set(f'mlrsnet:{tmp_path}', partial=True)
    assert found.many is not None and found.many.shape == (46, 60)
    assert {found.classes[i] for i in np.flatnonzero(found.many.all(0))} == {'trees', 'water'}
    assert found.many.sum() == 2 * 46
    table[labels[:14]] = 1
    table.to_csv(tmp_path / 'Labels' / f'{folder}.csv', index=False)
    refused(f'mlrsnet:{tmp_path}', f'{folder}.csv, line 2', 'damaged', partial=True)


def ben_patch(root: Path, name: str, labels: list[str] | None) -> None:
    """A patch of BigEarthNet: bands in three sizes, and labels where the version keeps them beside."""
    sizes = {'B01': 20, 'B02': 120, 'B03': 120, 'B04': 120, 'B05': 60}
    for value, (band, size) in enumerate(sizes.items()):
        raster(root / name / f'{name}_{band}.tif', 1, size, 100 * (value + 1), side=1200 / size)
    if labels is not None:
        (root / name / f'{name}_labels_metadata.json').write_text(json.dumps({'labels': labels}))


def test_bigearthnet_v1_maps_43_classes_to_19(tmp_path: Path) -> None:
    """Labels are mapped by name, patches without one of the 19 are left out, bands have one size."""
    root = tmp_path / 'BigEarthNet-v1.0'
    ben_patch(root, 'S2A_MSIL2A_1', ['Rice fields', 'Sea and ocean'])
    ben_patch(root, 'S2A_MSIL2A_2', ['Burnt areas'])
    ben_patch(root, 'S2A_MSIL2A_3', ['Transitional woodland/shrub'])
    (tmp_path / 'test.csv').write_bytes(b'S2A_MSIL2A_1,S1_1\r\nS2A_MSIL2A_2,S1_2\r\nS2A_MSIL2A_3,S1_3\r\n')
    found = open_set(f'bigearthnet19:{tmp_path}@test', partial=True)
    assert found.many is not None and len(found) == 2
    named = [{found.classes[i] for i in np.flatnonzero(row)} for row in found.many]
    assert named == [{'arable land', 'marine waters'}, {'transitional woodland, shrub'}]
    assert any('1 patches with none' in note for note in found.notes)
    assert found.bands == ('B04', 'B03', 'B02') and found.read(0)[:, 0, 0].tolist() == [400, 300, 200]
    wide = open_set(f'bigearthnet43:{tmp_path}@test', partial=True, bands=('B04', 'B05', 'B01'))
    assert wide.many is not None and wide.many.shape == (3, 43) and wide.read(0).shape == (3, 120, 120)
    np.testing.assert_allclose(wide.read(0)[:, 60, 60], [400, 500, 100])
    refused(f'bigearthnet19:{tmp_path}@test', '3 patches instead of 125,866')
    refused(f'bigearthnet19:{tmp_path}@val', 'no list val.csv', partial=True)


def test_bigearthnet_v2_reads_its_table(tmp_path: Path) -> None:
    """Splits and the 19 labels come from metadata.parquet, whose val is called validation."""
    tile = tmp_path / 'BigEarthNet-S2' / 'S2A_T33'
    for name in ('S2A_T33_01_02', 'S2A_T33_03_04'):
        ben_patch(tile, name, None)
    table = pd.DataFrame(
        {
            'patch_id': ['S2A_T33_01_02', 'S2A_T33_03_04'],
            'labels': [['Arable land'], ['Pastures', 'Marine waters']],
            'split': ['test', 'validation'],
        }
    )
    table.to_parquet(tmp_path / 'metadata.parquet')
    found = open_set(f'bigearthnet19:{tmp_path}@val', partial=True)
    assert found.name == 'bigearthnet19v2' and found.many is not None
    assert {found.classes[i] for i in np.flatnonzero(found.many[0])} == {'pastures', 'marine waters'}
    refused(f'bigearthnet43:{tmp_path}@val', '19 classes only', partial=True)


@pytest.mark.parametrize('name', CLASSES)
@pytest.mark.parametrize('turned', [False, True])
def test_deepsat_is_read_whichever_way_its_labels_lie(name: str, turned: bool, tmp_path: Path) -> None:
    """Pixels come band by band, labels from one-hot rows or columns; another number of images is an error."""
    count, classes = 7, len(CLASSES[name])
    x = np.random.default_rng(0).integers(0, 255, (28, 28, 4, count), dtype=np.uint8)
    y = np.eye(classes, dtype=np.float64)[np.arange(count) % classes]
    savemat(tmp_path / f'sat-{name[-1]}-full.mat', {'test_x': x, 'test_y': y if turned else y.T})
    found = open_set(f'{name}:{tmp_path}', partial=True)
    assert found.labels is not None and found.labels.tolist() == (np.arange(count) % classes).tolist()
    np.testing.assert_array_equal(found.read(3), np.moveaxis(x[..., 3], -1, 0))
    assert found.bands == ('red', 'green', 'blue', 'nir')
    refused(f'{name}:{tmp_path}', '7 test images instead of')
    (tmp_path / f'sat-{name[-1]}-full.mat').write_bytes(b'no matlab')
    refused(f'{name}:{tmp_path}', 'cannot be read as a MATLAB file')


def test_fmow_shows_the_box_of_its_json(tmp_path: Path) -> None:
    """The class is the folder's, only _rgb.jpg counts, and the box with its margin is what is seen."""
    place = tmp_path / 'fmow-rgb' / 'val' / 'zoo' / 'zoo_3'
    paint(place / 'zoo_3_0_rgb.jpg', size=100)
    paint(place / 'zoo_3_0_msrgb.jpg', size=50)
    told = {'bounding_boxes': [{'ID': -1, 'box': [0, 0, 100, 100]}, {'ID': 0, 'box': [20, 30, 60, 40]}]}
    (place / 'zoo_3_0_rgb.json').write_text(json.dumps(told))
    paint(tmp_path / 'fmow-rgb' / 'val' / 'multi-unit_residential' / 'x' / 'x_0_rgb.jpg', size=10)
    found = open_set(f'fmow:{tmp_path}')
    names = [found.classes[i] for i in found.labels]
    assert sorted(names) == ['multi-unit residential', 'zoo'] and len(found) == 2
    assert found.read(names.index('zoo')).shape == (3, 40 + 2 * 4, 60 + 2 * 4)
    refused(f'fmow:{tmp_path}@train', 'no folder train/CLASS')


def karpathy(root: Path, name: str, entries: list[dict[str, object]]) -> Path:
    """A caption set in the Karpathy form, with its pictures."""
    for entry in entries:
        paint(root / 'images' / str(entry['filename']))
    (root / PUBLISHED[name].file).write_text(json.dumps({'images': entries, 'dataset': name}))
    return root


def entry(filename: str, split: str, *captions: str) -> dict[str, object]:
    """An image of a Karpathy file."""
    return {'filename': filename, 'split': split, 'imgid': 0, 'sentences': [{'raw': c, 'tokens': []} for c in captions]}


@pytest.mark.parametrize('name', ['rsicd', 'rsitmd', 'ucm_captions', 'sydney_captions'])
def test_karpathy_files_give_captions_by_split(name: str, tmp_path: Path) -> None:
    """Captions of the split that is asked for, test by default; counts and missing pictures are errors."""
    karpathy(tmp_path, name, [entry('1.tif', 'train', 'a'), entry('2.tif', 'test', ' a dam . ', 'a dam .', 'water')])
    found = open_set(f'{name}:{tmp_path}', partial=True)
    assert found.captions == [('a dam .', 'a dam .', 'water')] and found.items == ['images/2.tif']
    refused(f'{name}:{tmp_path}', '1 test images instead of')
    refused(f'{name}:{tmp_path}@dev', "no split 'dev'")
    (tmp_path / 'images' / '2.tif').unlink()
    refused(f'{name}:{tmp_path}', '2.tif', 'not among the pictures')


def test_nwpu_captions_have_their_own_form(tmp_path: Path) -> None:
    """Images by class, captions in five keys; odd spellings in other keys do not count."""
    paint(tmp_path / 'NWPU_images' / 'airport' / 'airport_001.jpg')
    told = {'filename': 'airport_001.jpg', 'split': 'test', 'raw': 'one .', 'raw_1': 'two .', 'raw_4': 'five .'}
    (tmp_path / 'dataset_nwpu.json').write_text(json.dumps({'airport': [told | {'sentids': 3}]}))
    found = open_set(f'nwpu_captions:{tmp_path}', partial=True)
    assert found.captions == [('one .', 'two .', 'five .')] and found.items == ['NWPU_images/airport/airport_001.jpg']


def test_an_image_without_a_caption_is_named(tmp_path: Path) -> None:
    """A caption that is missing or empty is an error with the image's name, in every form."""
    karpathy(tmp_path / 'a', 'rsicd', [entry('1.tif', 'test', 'a'), entry('2.tif', 'test', ' ')])
    refused(f'rsicd:{tmp_path / "a"}', '2.tif has no caption', partial=True)
    paint(tmp_path / 'b' / 'x.png')
    (tmp_path / 'b' / 'captions.jsonl').write_text('{"image": "x.png", "captions": ["one", ""]}\n')
    refused(f'captions:{tmp_path / "b"}', 'line 1', 'x.png')
    (tmp_path / 'b' / 'captions.jsonl').write_text('{"image": "x.png", "captions":\n')
    refused(f'captions:{tmp_path / "b"}', 'no caption file of a known form')


def test_ones_own_folders_are_classes(tmp_path: Path) -> None:
    """A folder a class, its name in words; an empty one, a single one and names that do not fit are errors."""
    for folder in ('SeaLake', 'dense_forest'):
        paint(tmp_path / folder / 'a.png')
    found = open_set(f'folder:{tmp_path}')
    assert found.classes == ('sea lake', 'dense forest') and found.value_range == (0, 255)
    assert open_set(f'folder:{tmp_path}', classes=['a', 'b']).classes == ('a', 'b')
    refused(f'folder:{tmp_path}', '3 class names', classes=['a', 'b', 'c'])
    (tmp_path / 'empty').mkdir()
    refused(f'folder:{tmp_path}', 'class folder empty holds no pictures')
    (tmp_path / 'empty').rmdir()
    (tmp_path / 'SeaLake' / 'a.png').unlink()
    (tmp_path / 'SeaLake').rmdir()
    refused(f'folder:{tmp_path}', 'only the class dense_forest')
    assert in_words('railwayStation') == 'railway station'


@pytest.mark.parametrize(
    ('mode', 'colour', 'expected'),
    [('L', 90, (90, 90, 90)), ('RGBA', (9, 8, 7, 0), (9, 8, 7)), ('P', 3, None), ('LA', (50, 128), (50, 50, 50))],
)
def test_grey_palette_and_transparent_pictures_become_colours(
    mode: str, colour: tuple[int, ...] | int, expected: tuple[int, ...] | None, tmp_path: Path
) -> None:
    """Grey is all three colours, a palette the colours it stands for, transparency is left out."""
    paint(tmp_path / 'a' / 'plain.png')
    path = tmp_path / 'b' / 'other.png'
    path.parent.mkdir()
    image = Image.new(mode, (4, 4), colour)
    if mode == 'P':
        image.putpalette([10, 20, 30] * 3 + [1, 2, 3] + [0] * (3 * 252))
        expected = (1, 2, 3)
    image.save(path)
    found = open_set(f'folder:{tmp_path}')
    assert tuple(found.read(1)[:, 0, 0].tolist()) == expected


@pytest.mark.parametrize('first', [True, False])
def test_sixteen_bits_need_a_range(first: bool, tmp_path: Path) -> None:
    """16-bit pictures are refused by name until somebody says what is black and white."""
    paint(tmp_path / 'a' / 'a.png')
    (tmp_path / 'b').mkdir()
    where = tmp_path / ('a' if first else 'b') / '0.png'
    Image.fromarray(np.full((4, 4), 2000, np.uint16)).save(where)
    paint(tmp_path / 'b' / 'z.png')
    refused(f'folder:{tmp_path}', '0.png', 'uint16', '--value-range')
    if first:
        assert open_set(f'folder:{tmp_path}', value_range=(0, 3000)).read(0).max() == 2000


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file that is cut short or no picture at all is an error with its name."""
    paint(tmp_path / 'a' / 'a.png')
    whole = paint(tmp_path / 'b' / 'b.jpg', size=64)
    whole.write_bytes(whole.read_bytes()[:200])
    refused(f'folder:{tmp_path}', 'b.jpg', 'cannot be read as a picture')
    (tmp_path / 'b' / 'b.tif').write_bytes(b'nothing')
    whole.unlink()
    refused(f'folder:{tmp_path}', 'b.tif', 'cannot be read as a picture')


def test_a_table_names_images_labels_captions_and_places(tmp_path: Path) -> None:
    """Columns of a CSV become labels (one or several), captions, split and places."""
    for name in 'abc':
        paint(tmp_path / f'{name}.png')
    table = pd.DataFrame(
        {
            'image': ['a.png', 'b.png', 'c.png'],
            'label': ['sea', 'land|town', 'land'],
            'caption': ['one', 'two', 'three'],
            'caption_2': ['', 'deux', ''],
            'split': ['test', 'test', 'train'],
            'lon': [1, 2, 3],
            'lat': [4, 5, 6],
        }
    )
    table.to_csv(tmp_path / 'mine.csv', index=False)
    found = open_set(f'csv:{tmp_path / "mine.csv"}')
    assert found.classes == ('land', 'sea', 'town') and found.labels is None and found.many is not None
    assert found.many.tolist() == [[False, True, False], [True, False, True], [True, False, False]]
    assert found.captions == [['one'], ['two', 'deux'], ['three']]
    np.testing.assert_array_equal(found.lonlat(), [[1, 4], [2, 5], [3, 6]])
    part = open_set(f'csv:{tmp_path / "mine.csv"}@test')
    assert part.items == ['a.png', 'b.png']
    for change, said in (
        ({'label': ['sea', '', 'land']}, 'row 3: `label` is empty'),
        ({'caption': ['one', 'two', ' ']}, 'row 4: `caption` is empty'),
        ({'image': ['a.png', 'x.png', 'c.png']}, 'names x.png, which is not there'),
    ):
        table.assign(**change).to_csv(tmp_path / 'bad.csv', index=False)
        refused(f'csv:{tmp_path / "bad.csv"}', said)
    one = table.assign(label='sea')[['image', 'label']]
    one.to_csv(tmp_path / 'bad.csv', index=False)
    refused(f'csv:{tmp_path / "bad.csv"}', 'only the class sea')
    table[['label']].to_csv(tmp_path / 'bad.csv', index=False)
    refused(f'csv:{tmp_path / "bad.csv"}', 'no column `image`')


def test_masks_give_a_class_to_every_pixel(tmp_path: Path) -> None:
    """Values of the masks become classes by classes.yaml, others do not count; what is missing is named."""
    paint(tmp_path / 'images' / 'a.png')
    (tmp_path / 'masks').mkdir()
    values = np.array([[1, 1, 7, 0]] * 4, np.uint8)
    Image.fromarray(values).save(tmp_path / 'masks' / 'a.png')
    (tmp_path / 'classes.yaml').write_text('1: forest\n7: water\n')
    found = open_set(f'masks:{tmp_path}')
    assert found.mask is not None and found.mask(0)[0].tolist() == [0, 0, 1, VOID]
    Image.fromarray(values[:2]).save(tmp_path / 'masks' / 'a.png')
    with pytest.raises(GrafalignError, match='make them alike'):
        found.mask(0)
    paint(tmp_path / 'masks' / 'a.png')
    with pytest.raises(GrafalignError, match='save it as indices'):
        found.mask(0)
    (tmp_path / 'masks' / 'a.png').unlink()
    refused(f'masks:{tmp_path}', 'images/a.png has no mask')
    (tmp_path / 'classes.yaml').write_text('1: forest\n')
    refused(f'masks:{tmp_path}', 'fewer than two classes')


@pytest.mark.parametrize(
    ('spec', 'said'),
    [
        ('eurosat', 'NAME:PATH'),
        ('nothing:{}', "no data set 'nothing'"),
        ('eurosat:{}/none', 'no folder or zip'),
        ('eurosat:{}', 'no class folders'),
        ('rsicd:{}', 'no dataset_rsicd.json'),
        ('sat4:{}', 'no sat-4-full.mat'),
        ('bigearthnet19:{}', 'neither'),
        ('csv:{}/none.csv', 'no file'),
    ],
)
def test_what_is_not_there_is_one_sentence(spec: str, said: str, tmp_path: Path) -> None:
    """A set that does not exist, or whose files do not, names what to give."""
    refused(spec.format(tmp_path), said)


def test_digests_tell_sets_apart_and_not_their_folders(tmp_path: Path) -> None:
    """The same files elsewhere are the same set; other labels, bands, words or images are another."""
    for where in ('one/set', 'two/set'):
        class_folders(tmp_path / where, 'whurs19', 2)
    first = open_set(f'whurs19:{tmp_path / "one" / "set"}', partial=True)
    assert first.digest == open_set(f'whurs19:{tmp_path / "two" / "set"}', partial=True).digest
    others: list[Callable[[], object]] = [
        lambda: first.subset(np.arange(5), 'all').digest,
        lambda: (
            open_set(
                f'whurs19:{tmp_path / "one" / "set"}', partial=True, classes=[f'{i} times' for i in range(19)]
            ).digest
        ),
        lambda: (
            open_set(f'whurs19:{tmp_path / "one" / "set"}', partial=True, classes=[str(i) for i in range(19)]).digest
        ),
    ]
    assert len({first.digest, *(other() for other in others)}) == 4


def test_every_published_set_is_listed() -> None:
    """Names that errors offer are those that can be opened."""
    for name in ('eurosat', 'eurosat13', 'bigearthnet43', 'sat6', 'fmow', 'nwpu_captions', 'mlrsnet', 'aid'):
        assert name in known_sets()


@pytest.mark.realdata
def test_real_eurosat_and_rsicd_files(realdata: Path) -> None:
    """Published files: 10 images of each class with 13 bands and places; 1,027 images with five captions each."""
    found = open_set(f'eurosat13:{realdata / "eurosat" / "data"}', partial=True)
    assert len(found) == 100 and np.bincount(found.labels).tolist() == [10] * 10
    assert found.read(0).shape == (13, 64, 64) and found.read(0).dtype == np.uint16
    places = found.lonlat()
    assert places is not None and (np.abs(places[:, 0]) < 40).all() and (places[:, 1] > 25).all()
    captions = open_set(f'captions:{realdata / "aid_rsicd_val"}')
    assert len(captions) == 1027 and {len(c) for c in captions.captions or ()} == {5} and len(captions.classes) == 30
    assert captions.read(5).shape == (3, 150, 150)
